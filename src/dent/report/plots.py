"""The charts of a page: accuracy along a series, adaptation by step, progress of attacks."""

from collections.abc import Sequence

from dent.evaluation.records.schema import Trace
from dent.evaluation.records.spec import STATIC
from dent.evaluation.results.result import (
    AttackCurve,
    AttackSummary,
    Count,
    DefenseResult,
    EvaluationResult,
)
from dent.report import wording
from dent.report.charts import COLORS, Chart, Curve, Value, chart, thin, whole_ticks
from dent.report.flags import Flag, Flags
from dent.report.headline import submitted
from dent.report.series import Series
from dent.support.plural import counted

_WITH_AXIS = ("eps", "batch size", "share attacked", "samples")


def color_of(result: EvaluationResult, defense: str) -> int:
    """Return the color of a defense: 0 for the static model, others in the order of the spec."""
    others = [name for name in result.defenses if name != STATIC]
    return 0 if defense == STATIC else 1 + others.index(defense) % (COLORS - 1)


def accuracy_chart(series: Series, flags: Flags) -> Chart | None:
    """Draw accuracy along a series, with intervals; None if its values have no order.

    Over eps, the curve of robust accuracy begins with the clean accuracy at eps 0 (the paper's
    Figure 4). Over other settings, clean accuracy is a separate curve (Table 9).
    """
    if series.over not in _WITH_AXIS:
        return None
    by_eps = series.over == "eps"
    even = series.over in {"batch size", "samples"}  # values that grow by factors
    positions = [float(i) if even else p.value or 0.0 for i, p in enumerate(series.places)]
    ticks = list(zip(positions, (place.text for place in series.places), strict=True))
    curves = []
    for defense in series.defenses:
        worst = _values(positions, [p.text for p in series.places], series.worst(defense))
        natural = _values(positions, [p.text for p in series.places], series.natural(defense))
        if by_eps and positions[0] > 0 and natural:
            text = f"clean {natural[0].text.partition(': ')[2]}"
            worst = [Value(0.0, natural[0].y, natural[0].interval, text), *worst]
        result = series.places[0].run.result
        marks = _marks_along(series, flags, defense)
        color = color_of(result, defense)
        name = defense if by_eps else f"{defense}, worst case"
        if worst:
            curves.append(Curve(name, marks, color, False, worst))
        if not by_eps and natural:
            curves.append(Curve(f"{defense}, clean", marks, color, True, natural))
    if not curves:
        return None
    if by_eps and positions[0] > 0:
        ticks = [(0.0, "0"), *ticks]
    title = f"{'Worst-case robust accuracy' if by_eps else 'Accuracy'} against {series.over}"
    return chart(
        f"{title} ({series.label})" if series.label else title,
        curves,
        x_label=f"{series.over} ({series.places[0].run.result.spec.threat.norm})"
        if by_eps
        else series.over,
        y_label="accuracy",
        x_ticks=thin(ticks),
        share=True,
        numeric=not even,
    )


def entropy_chart(result: EvaluationResult, defense: str, flags: Flags) -> Chart | None:
    """Draw the entropy of natural and adversarial batches by step; None if no steps are reported.

    The adversarial curve shows the strongest attack; the other submissions are in the table.
    """
    curves = [
        _by_step(result, defense, flags, name, natural, trace.entropy, "nats")
        for name, trace, natural in _shown(result, defense)
        if trace.entropy is not None and len(trace.entropy) > 1
    ]
    return _step_chart(f"{defense}: entropy by step", curves, "mean entropy in nats")


def sigma_chart(result: EvaluationResult, defense: str, flags: Flags) -> Chart | None:
    """Draw sigma of the input smoothing by step; None if it is not learned or not reported."""
    curves = []
    for name, trace, natural in _shown(result, defense):
        steps = trace.sigma_by_step or ()
        if len(steps) < 2:
            continue
        axes = [""] if len(steps[0]) == 1 else [", vertical", ", horizontal"]
        for axis, axis_name in enumerate(axes):
            values = [step[axis] for step in steps]
            curve_name = f"{name}{axis_name}"
            curves.append(_by_step(result, defense, flags, curve_name, natural, values, "pixels"))
    return _step_chart(f"{defense}: sigma by step", curves, "mean sigma in pixels")


def _shown(result: EvaluationResult, name: str) -> list[tuple[str, Trace, bool]]:
    """Return the traces to draw by step: name, trace, and whether the images are natural."""
    defense = result.defenses[name]
    worst = strongest(defense)
    shown_traces = [("natural images", defense.trace, True)]
    if worst is not None:
        shown_traces.append((wording.submission(worst, name), worst.trace, False))
    return shown_traces


def _by_step(
    result: EvaluationResult,
    defense: str,
    flags: Flags,
    name: str,
    natural: bool,
    values: Sequence[float],
    unit: str,
) -> Curve:
    return Curve(
        name=name,
        flags=flags.marks(result, defense),
        color=color_of(result, defense),
        dashed=natural,
        values=[
            Value(float(step), value, None, f"{value:.3f} {unit} after {counted(step, 'step')}")
            for step, value in enumerate(values)
        ],
    )


def _step_chart(title: str, curves: Sequence[Curve], y_label: str) -> Chart | None:
    if not curves:
        return None
    return chart(
        title,
        curves,
        x_label="steps taken",
        y_label=y_label,
        x_ticks=whole_ticks(max(len(curve.values) for curve in curves) - 1),
    )


def success_chart(result: EvaluationResult, defense: str, flags: Flags) -> Chart | None:
    """Draw the share of members that each attack broke, by gradients; None without gradients.

    The members are those that the attack did not leave out, because earlier attacks had broken
    them. The chart shows the attacks that broke the most, as many as there are colors.
    """
    drawn = [
        (attack.attack or "", curve)
        for attack in result.defenses[defense].attacks
        if (curve := own_curve(attack)) is not None
    ]
    strongest_first = sorted(drawn, key=lambda pair: -pair[1].broken[-1] / pair[1].total)
    curves = [
        Curve(
            name=name,
            flags=flags.marks(result, defense),
            color=index,
            dashed=False,
            values=[
                Value(
                    float(at),
                    broken / curve.total,
                    None,
                    f"{broken} of {curve.total} broken after {counted(at, 'gradient')}",
                )
                for at, broken in zip(curve.gradients, curve.broken, strict=True)
            ],
        )
        for index, (name, curve) in enumerate(strongest_first[:COLORS])
    ]
    if not curves:
        return None
    return chart(
        f"{defense}: broken by number of gradients",
        curves,
        x_label="gradients per batch",
        y_label="members broken so far",
        x_ticks=whole_ticks(max(curve.gradients[-1] for _, curve in strongest_first[:COLORS])),
        share=True,
        numeric=True,
    )


def own_curve(attack: AttackSummary) -> AttackCurve | None:
    """Return the curve over the members that an attack did not leave out; None without any."""
    curve = attack.curve
    if curve is None or curve.total <= attack.carried:
        return None
    broken = tuple(max(count - attack.carried, 0) for count in curve.broken)
    return curve.model_copy(update={"broken": broken, "total": curve.total - attack.carried})


def traces(result: EvaluationResult, name: str) -> list[tuple[str, Trace]]:
    """Return the traces of a defense's adaptation: on natural batches, and under each attack."""
    defense = result.defenses[name]
    return [
        ("natural images", defense.trace),
        *(
            (wording.submission(attack, name), attack.trace)
            for attack in submitted(defense, result.spec).values()
        ),
    ]


def strongest(defense: DefenseResult) -> AttackSummary | None:
    """Return the attack that left the fewest members correct; None if nothing was scored."""
    scored = [attack for attack in defense.attacks if attack.served.share is not None]
    return min(scored, key=lambda attack: attack.served.share or 0.0, default=None)


def _values(
    positions: Sequence[float], texts: Sequence[str], counts: Sequence[Count]
) -> list[Value]:
    return [
        Value(x, count.share, count.interval, f"{text}: {wording.count(count)}")
        for x, text, count in zip(positions, texts, counts, strict=True)
        if count.share is not None
    ]


def _marks_along(series: Series, flags: Flags, defense: str) -> list[Flag]:
    letters = {
        flag.letter for place in series.places for flag in flags.marks(place.run.result, defense)
    }
    return [flag for flag in flags.all if flag.letter in letters]
