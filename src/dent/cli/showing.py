"""A result in a terminal: the table, with every raised flag beside the headline."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from rich.markup import escape

from dent.cli.console import OUT, print_table
from dent.evaluation import Count, DefenseResult, Difference, EvaluationResult
from dent.report import wording
from dent.report.flags import Flag, Flags, letters
from dent.report.limits import limits
from dent.support.printable import one_line

_Kind: TypeAlias = tuple[str, str | None]
"""What was submitted, and by which attack."""


@dataclass(frozen=True)
class _Only:
    """A result that is alone on the screen."""

    name: str
    result: EvaluationResult


def show(result: EvaluationResult, out: str) -> None:
    """Print the table of a result, every raised flag, what it does not show, and where it lies."""
    spec = result.spec
    flags = Flags([_Only("", result)])
    mixed = any(found.bystanders.total for found in result.defenses.values())
    submitted = _submitted(result)
    titles = ["defense", "natural", *(["bystanders"] if mixed else []), *submitted]
    judged = any(found.verdict for found in result.defenses.values())
    titles += ["worst case", "against static", *(["verdict"] if judged else []), "cost"]
    attacked = f"{result.samples} of {spec.dataset.name}, {result.batches} batches"
    by_defense = [
        _column(name, result, flags, submitted.values(), mixed=mixed, judged=judged)
        for name in result.defenses
    ]
    # A column for each defense: they are few, and what is submitted to them may be much.
    header, *rows = zip(map(escape, titles), *by_defense, strict=True)
    print_table(
        escape(f"{spec.model.name} on {attacked}, {spec.threat.norm} eps {spec.threat.eps}"),
        header,
        rows,
    )
    for name, found in result.defenses.items():
        for sentence in wording.findings(found):
            OUT.print(one_line(f"{name}: {sentence}"), markup=False, soft_wrap=True)
    if result.status == "partial":
        OUT.print(f"[bold]Partial:[/] {result.units_done} of {result.units_planned} units.")
    for flag in flags.all:
        by = ", ".join(flag.raised_by)
        OUT.print(one_line(f"({flag.letter}) {by}: {flag.sentence}"), markup=False, soft_wrap=True)
    _explain(result, mixed=mixed)
    OUT.print(f"Records: {out}    Result: {out}/result.json", markup=False, soft_wrap=True)


def _submitted(result: EvaluationResult) -> dict[str, _Kind]:
    """What was submitted to any defense, by the title of its row."""
    kinds = {(s.kind, s.attack): None for d in result.defenses.values() for s in d.attacks}
    titles = {"attack": "{}", "transfer": "{} replayed", "assembled": "assembled"}
    order = list(titles)
    ordered = sorted(kinds, key=lambda kind: order.index(kind[0]))
    return {titles[kind].format(attack): (kind, attack) for kind, attack in ordered}


def _column(
    name: str,
    result: EvaluationResult,
    flags: Flags,
    submitted: Iterable[_Kind],
    *,
    mixed: bool,
    judged: bool,
) -> list[str]:
    found = result.defenses[name]
    marks = _marks(flags.marks(result, name))
    both = _marks(flags.marks_of_difference(result, name))
    by_kind: dict[_Kind, str] = {
        (s.kind, s.attack): _with_bystanders(s.served, s.bystanders) for s in found.attacks
    }
    cost = found.timing.get("relative")
    return [
        escape(name) + marks,
        percent(found.natural),
        *([percent(found.bystanders)] if mixed else []),
        *(by_kind.get(kind, "") for kind in submitted),
        with_interval(found.worst.served) + marks,
        gain(found.difference) + (both if found.difference else ""),
        *([found.verdict.ruling if found.verdict else ""] if judged else []),
        "" if cost is None else f"{cost:.1f}x",
    ]


def _marks(flags: Sequence[Flag]) -> str:
    return f" ({letters(flags)})" if flags else ""


def _with_bystanders(served: Count, bystanders: Count) -> str:
    """Of a mixed batch, the accuracy on each part: attacked members / natural ones."""
    return percent(served) + (f" / {percent(bystanders)}" if bystanders.total else "")


def _explain(result: EvaluationResult, *, mixed: bool) -> None:
    OUT.print(
        "Robust accuracy: attacked images that the defense still classifies correctly when the "
        "whole batch is submitted again. "
        + ("After the slash: natural members of the same batches. " if mixed else "")
        + "Worst case: over everything submitted, per "
        + ", per ".join(
            f"{unit} ({', '.join(escape(one_line(name)) for name in names)})"
            for unit, names in _units(result.defenses).items()
        )
        + ". Intervals: 95%. Cost: one prediction, in static forwards.",
        soft_wrap=True,
    )
    for sentence in limits(result):
        OUT.print(f"- {one_line(sentence)}", markup=False, soft_wrap=True)


def _units(defenses: Mapping[str, DefenseResult]) -> dict[str, list[str]]:
    units: dict[str, list[str]] = {}
    for name, defense in defenses.items():
        units.setdefault(defense.worst.unit, []).append(name)
    return units


def percent(count: Count) -> str:
    """Return a share as 12.3%; nothing where there is none."""
    return "" if count.share is None else f"{100 * count.share:.1f}%"


def with_interval(count: Count) -> str:
    """Return a share with its 95% interval, as markup."""
    if count.interval is None:
        return ""
    low, high = count.interval
    return f"{percent(count)} [{100 * low:.0f}, {100 * high:.0f}]".replace("[", r"\[")


def gain(difference: Difference | None) -> str:
    """Return a difference in points with its interval, as markup."""
    if difference is None or difference.value is None:
        return ""
    text = f"{100 * difference.value:+.1f}"
    if difference.interval is None:
        return text
    low, high = difference.interval
    return rf"{text} \[{100 * low:+.0f}, {100 * high:+.0f}]"
