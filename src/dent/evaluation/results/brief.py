"""A result in a few lines of text, for `print(result)`."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from dent.support.plural import counted
from dent.support.printable import one_line
from dent.support.rounding import percent, percent_bounds, points, points_bounds

if TYPE_CHECKING:
    from dent.evaluation.results.result import Count, DefenseResult, Difference, EvaluationResult


def brief(result: "EvaluationResult") -> str:
    """Return a line for the evaluation and a few for each defense, without a final line break."""
    return "\n".join(map(one_line, _lines(result)))


def _lines(result: "EvaluationResult") -> Iterator[str]:
    spec = result.spec
    yield (
        f"{spec.model.name} on {result.samples} of {spec.dataset.name}, "
        f"{counted(result.batches, 'batch')}, {spec.threat.norm} eps {spec.threat.eps}"
    )
    if result.status == "partial":
        yield f"partial: {result.units_done} of {counted(result.units_planned, 'unit')}"
    for name, defense in result.defenses.items():
        yield f"{name}: {', '.join(_figures(defense))}"
        if defense.verdict is not None:
            yield f"    {defense.verdict.sentence}"
        if defense.raised:
            yield f"    flags: {', '.join(diagnostic.name for diagnostic in defense.raised)}"


def _figures(defense: "DefenseResult") -> Iterator[str]:
    yield f"clean {_count(defense.natural, with_interval=False)}"
    yield f"worst case {_count(defense.worst.served, with_interval=True)}"
    if defense.difference is not None and defense.difference.value is not None:
        yield f"against static {_difference(defense.difference, defense.difference.value)}"


def _count(count: "Count", *, with_interval: bool) -> str:
    if count.share is None:
        return "not scored"
    bounds = percent_bounds(count.interval) if with_interval and count.interval else ""
    return f"{percent(count.share)} {bounds}".rstrip()


def _difference(difference: "Difference", value: float) -> str:
    bounds = f" {points_bounds(difference.interval)}" if difference.interval else ""
    return f"{points(value)}{bounds} points"
