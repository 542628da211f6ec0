"""The charts of a run: the margin by query of each attack, and entropy and sigma by step."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from dent.evaluation.records.schema import Trace
from dent.playground import words
from dent.playground.outcome import CourseName, PlaygroundOutcome, PlaygroundSubmission
from dent.playground.watch import Look
from dent.report.charts import Chart, Curve, Value, chart, whole_ticks
from dent.support.plural import counted

COLORS: Final[Mapping[CourseName, int]] = {
    "static": 0,
    "transfer": 1,
    "stop-gradient": 2,
    "unrolled": 3,
}
"""Index of each attack into the report's colors."""
_NATURAL: Final = 4


def margin_chart(looks: Mapping[CourseName, Sequence[Look]], defense: str) -> Chart | None:
    """Return the margin by query of every attack so far; None if there is nothing to draw."""
    curves = [
        Curve(
            name=f"{words.target(name, defense)}, {words.course(name)}",
            flags=(),
            color=COLORS[name],
            dashed=False,
            values=[
                Value(
                    float(look.query), look.margin, None, f"query {look.query}: {look.margin:.2f}"
                )
                for look in course_looks
                if math.isfinite(look.margin)
            ],
        )
        for name, course_looks in looks.items()
    ]
    return _chart(
        "Margin of the label by query",
        curves,
        x_label="query of the attack, from 0: the natural image",
        y_label="label's logit less the largest other; wrong below 0",
    )


def entropy_chart(outcome: PlaygroundOutcome) -> Chart | None:
    """Return the entropy of the image's prediction by step, for every submission.

    None if there is nothing to draw.
    """
    label = "entropy of the image's prediction in nats"
    return _step_chart(outcome, "entropy", label, lambda trace: trace.entropy)


def sigma_chart(outcome: PlaygroundOutcome) -> Chart | None:
    """Return sigma of the smoothing by step, for every submission; None if it is not learned."""

    def sigma(trace: Trace) -> list[float]:
        return [step[0] for step in trace.sigma_by_step or ()]

    return _step_chart(outcome, "sigma", "sigma of the smoothing in pixels", sigma)


def _step_chart(
    outcome: PlaygroundOutcome,
    quantity: str,
    label: str,
    by_step: Callable[[Trace], Sequence[float] | None],
) -> Chart | None:
    traced = [
        (submission, by_step(submission.defense.served.trace) or ())
        for submission in outcome.submissions
    ]
    curves = [_by_step(submission, values) for submission, values in traced if len(values) > 1]
    title = f"{outcome.setup.defense}: {quantity} by step"
    return _chart(title, curves, x_label="steps taken", y_label=label)


def _by_step(submission: PlaygroundSubmission, values: Sequence[float]) -> Curve:
    # These are the steps of the defense, for which the attack on the static model is a transfer.
    attack = "transfer" if submission.found_by == "static" else submission.found_by
    return Curve(
        name=words.submission(submission),
        flags=(),
        color=_NATURAL if attack is None else COLORS[attack],
        dashed=attack is None,
        values=[
            Value(float(step), value, None, f"{value:.3f} after {counted(step, 'step')}")
            for step, value in enumerate(values)
        ],
    )


def _chart(title: str, curves: Sequence[Curve], *, x_label: str, y_label: str) -> Chart | None:
    nonempty = [curve for curve in curves if curve.values]
    if not nonempty:
        return None
    last = max(int(curve.values[-1].x) for curve in nonempty)
    return chart(
        title, nonempty, x_label=x_label, y_label=y_label, x_ticks=whole_ticks(max(last, 1))
    )
