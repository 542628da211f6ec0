"""The charts of a run: margin by query of each attack, entropy and sigma by step."""

import math
from collections.abc import Mapping, Sequence
from typing import Final

from dent.playground import words
from dent.playground.outcome import CourseName, Outcome
from dent.playground.watch import Look
from dent.report.charts import Chart, Curve, Value, chart, whole_ticks

COLOURS: Final[Mapping[CourseName | None, int]] = {
    None: 4,
    "static": 0,
    "transfer": 1,
    "stop-gradient": 2,
    "unrolled": 3,
}
"""Which of the report's colours an attack has; the natural image's for None."""


def margin_chart(looks: Mapping[CourseName, Sequence[Look]], defense: str) -> Chart | None:
    """Margin by query of every attack so far; None where there is nothing to draw."""
    curves = [
        Curve(
            name=f"{words.target(name, defense)}, {words.course(name)}",
            flags=(),
            colour=COLOURS[name],
            dashed=False,
            values=[
                Value(
                    float(look.query), look.margin, None, f"query {look.query}: {look.margin:.2f}"
                )
                for look in seen
                if math.isfinite(look.margin)
            ],
        )
        for name, seen in looks.items()
    ]
    return _chart(
        "Margin of the label by query",
        curves,
        x_label="query of the attack, from 0: the natural image",
        y_label="label's logit less the largest other; wrong below 0",
    )


def entropy_chart(outcome: Outcome) -> Chart | None:
    """Entropy of the image's prediction by step of the adaptation, of every submission."""
    curves = [
        _by_step(words.submission(each), COLOURS[each.found_by], each.found_by is None, steps)
        for each in outcome.submissions
        if (steps := each.defense.served.trace.entropy) is not None and len(steps) > 1
    ]
    return _chart(
        f"{outcome.setup.defense}: entropy by step",
        curves,
        x_label="steps taken",
        y_label="entropy of the image's prediction in nats",
    )


def sigma_chart(outcome: Outcome) -> Chart | None:
    """Sigma of the smoothing by step, of every submission; None where it is not learned."""
    curves = [
        _by_step(
            words.submission(each),
            COLOURS[each.found_by],
            each.found_by is None,
            [step[0] for step in steps],
        )
        for each in outcome.submissions
        if (steps := each.defense.served.trace.sigma_by_step) is not None and len(steps) > 1
    ]
    return _chart(
        f"{outcome.setup.defense}: sigma by step",
        curves,
        x_label="steps taken",
        y_label="sigma of the smoothing in pixels",
    )


def _by_step(name: str, colour: int, dashed: bool, values: Sequence[float]) -> Curve:
    return Curve(
        name=name,
        flags=(),
        colour=colour,
        dashed=dashed,
        values=[
            Value(float(step), value, None, f"{value:.3f} after {step} steps")
            for step, value in enumerate(values)
        ],
    )


def _chart(title: str, curves: Sequence[Curve], *, x_label: str, y_label: str) -> Chart | None:
    drawn = [curve for curve in curves if curve.values]
    if not drawn:
        return None
    last = max(int(curve.values[-1].x) for curve in drawn)
    return chart(title, drawn, x_label=x_label, y_label=y_label, x_ticks=whole_ticks(max(last, 1)))
