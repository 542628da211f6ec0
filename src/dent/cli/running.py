"""Run an evaluation in a terminal: progress while it runs, a table when it is done."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from dent.cli.console import ERR, OUT, print_table
from dent.evaluation import (
    Count,
    DefenseResult,
    Difference,
    EvaluationResult,
    Settings,
    Subject,
    estimate,
    evaluate,
    sweep,
)
from dent.evaluation import Progress as State
from dent.evaluation.sweep import Over, Value, folder_name

__all__ = [
    "announce",
    "folder_name",
    "gain",
    "percent",
    "progress",
    "run",
    "run_sweep",
    "show",
    "with_interval",
]


def run(subject: Subject, settings: Settings, out: Path) -> EvaluationResult:
    """Evaluate with a progress bar; say how to go on if interrupted."""
    try:
        with progress() as report:
            return evaluate(subject, settings, out=out, progress=report)
    except KeyboardInterrupt:
        ERR.print(
            f"\nStopped. What is done lies in {out}; the same command goes on from there.",
            soft_wrap=True,
        )
        raise


def run_sweep(
    subject: Subject, settings: Settings, over: Over, values: Sequence[Value], out: Path
) -> dict[str, EvaluationResult]:
    """Evaluate once for each value, each with a progress bar; resumable as a whole."""
    with progress() as report:
        return sweep(
            subject,
            settings,
            over=over,
            values=values,
            out=out,
            progress=lambda value, state: report(state, f"{over}={value}"),
        )


def announce(subject: Subject, settings: Settings) -> None:
    """Say, before a run starts, what it will take at most."""
    cost = estimate(subject, settings)
    each = ", ".join(
        f"{name} {found.relative:.0f}x" for name, found in cost.defenses.items() if name != "static"
    )
    ERR.print(
        f"At most about {_duration(cost.seconds)} and {cost.tensor_bytes / 1e6:.0f} MB, for "
        f"{cost.units} units" + (f"; one answer in static forwards: {each}." if each else "."),
        soft_wrap=True,
        markup=False,
    )


@contextmanager
def progress() -> Iterator["_Report"]:
    """Show how far evaluations are: a bar, or a line a unit where nobody watches."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}  {task.fields[robust]}"),
    )
    with Progress(*columns, console=ERR, disable=not ERR.is_terminal) as bar:
        yield _Report(bar)


class _Report:
    """Draws the state of a run; where nobody watches, prints a line a unit instead."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task = bar.add_task("starting", total=1.0, left="", robust="")
        self._unit = ""

    def __call__(self, state: State, where: str = "") -> None:
        unit = state.unit
        doing = f"{where} done".strip()
        if unit is not None:
            doing = " ".join(filter(None, (where, unit.kind, unit.attack, "·", unit.defense)))
        left = "" if state.remaining is None else f"about {_duration(state.remaining)} left"
        robust = ", ".join(f"{name} {a}/{b}" for name, (a, b) in state.robust.items())
        self._bar.update(
            self._task,
            description=doing,
            completed=state.share,
            left=left,
            robust=f"robust: {robust}" if robust else "",
        )
        if not ERR.is_terminal and doing != self._unit:
            self._unit = doing
            ERR.print(f"[{state.done}/{state.total}] {doing}  {left}", markup=False, soft_wrap=True)


def show(result: EvaluationResult, out: Path) -> None:
    """Print the table of a result, every raised flag, and where the records lie."""
    spec = result.spec
    attacked = f"{result.samples} of {spec.dataset.name}, {result.batches} batches"
    title = f"{spec.model.name} on {attacked}, {spec.threat.norm} eps {spec.threat.eps}"
    attacks = [attack.name for attack in spec.attacks]
    columns = ["defense", "natural", *attacks]
    transferred = any(s.kind == "transfer" for d in result.defenses.values() for s in d.attacks)
    columns += [f"{name} replayed" for name in attacks if transferred]
    columns += ["worst case", "against static", "cost"]
    print_table(
        title, columns, [_row(*item, attacks, transferred) for item in result.defenses.items()]
    )
    _explain(result)
    if result.status == "partial":
        OUT.print(f"[bold]Partial:[/] {result.units_done} of {result.units_planned} units.")
    _flags(result.defenses)
    OUT.print(f"Records: {out}    Result: {out / 'result.json'}", markup=False, soft_wrap=True)


def _row(name: str, defense: DefenseResult, attacks: list[str], transferred: bool) -> list[str]:
    by_kind = {(s.kind, s.attack): percent(s.served) for s in defense.attacks}
    row = [name, percent(defense.natural)]
    row += [by_kind.get(("attack", attack), "") for attack in attacks]
    if transferred:
        row += [by_kind.get(("transfer", attack), "") for attack in attacks]
    cost = defense.timing.get("relative")
    flag = " (!)" if defense.raised else ""
    return [
        *row,
        with_interval(defense.worst.served) + flag,
        gain(defense.difference) + (flag if defense.difference else ""),
        "" if cost is None else f"{cost:.1f}x",
    ]


def _explain(result: EvaluationResult) -> None:
    OUT.print(
        "Robust accuracy: attacked images that the defense still classifies correctly when the "
        "whole batch is submitted again. Worst case: over everything submitted, per "
        + ", per ".join(
            f"{unit} ({', '.join(names)})" for unit, names in _units(result.defenses).items()
        )
        + ". Intervals: 95%. Cost: one prediction, in static forwards."
    )
    if any(not name.startswith("static") for name in result.defenses):
        OUT.print(
            "The attacks go through the defense's final forward only (stop-gradient) or replay "
            "what broke the static model. Stronger adaptive attacks are known to take more: read "
            "these figures as upper bounds on robust accuracy."
        )


def _units(defenses: Mapping[str, DefenseResult]) -> dict[str, list[str]]:
    units: dict[str, list[str]] = {}
    for name, defense in defenses.items():
        units.setdefault(defense.worst.unit, []).append(name)
    return units


def _flags(defenses: Mapping[str, DefenseResult]) -> None:
    for name, defense in defenses.items():
        for flag in defense.raised:
            OUT.print(f"(!) {name}: {flag.sentence}", markup=False, soft_wrap=True)


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


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
