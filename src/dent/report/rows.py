"""One row for every number, for CSV and JSON."""

from collections.abc import Iterator, Sequence
from typing import Any, Final

from dent.evaluation.results.result import AttackSummary, Count, DefenseResult
from dent.report.flags import Flags
from dent.report.loading import NamedRun

COLUMNS: Final = (
    "run",
    "status",
    "model",
    "dataset",
    "norm",
    "eps",
    "batch_size",
    "order",
    "mix",
    "seed",
    "defense",
    "measure",
    "attack",
    "unit",
    "correct",
    "total",
    "value",
    "low",
    "high",
    "only_defended",
    "only_static",
    "claimed_but_served",
    "served_wrong_unclaimed",
    "carried",
    "flags",
    "verdict",
    "stopped_after",
)
"""`value` is a share between 0 and 1 with its interval, `low` to `high`. For `difference` and
`over-views` it is a difference of shares. For `cost` it is the median time of a prediction,
relative to a static forward. `stopped_after` is the number of attacks on the defense that had run
when the run stopped on it: `worst` and `difference` are then upper bounds. A value that does not
apply or was not scored is empty (in JSON: null)."""

Row = dict[str, str | int | float | None]


def rows(runs: Sequence[NamedRun], flags: Flags) -> list[Row]:
    """Return all numbers of several runs.

    Returns:
        Rows by run, defense and measure. The measures are `natural` and `bystanders` (clean
        accuracy); `attack`, `transfer`, `assembled` and `challenge` (accuracy on submission);
        `claimed` (the attack's own claim); `attack-bystanders` and so on (clean members of attacked
        batches); `worst`, `difference`, `over-views` and `cost`. Every row names the raised
        diagnostics of its defense and of the run. A row of a difference also names those of the
        static model.
    """
    return [
        dict.fromkeys(COLUMNS) | _about(run) | row
        for run in runs
        for name, defense in run.result.defenses.items()
        for row in _of_defense(run, name, defense, flags)
    ]


def _about(run: NamedRun) -> Row:
    spec = run.result.spec
    return {
        "run": run.name,
        "status": run.result.status,
        "model": spec.model.name,
        "dataset": spec.dataset.name,
        "norm": spec.threat.norm,
        "eps": spec.threat.eps,
        "batch_size": spec.settings.batch_size,
        "order": spec.settings.order,
        "mix": spec.settings.mix,
        "seed": spec.settings.seed,
    }


def _of_defense(run: NamedRun, name: str, defense: DefenseResult, flags: Flags) -> Iterator[Row]:
    marks = "; ".join(flag.name for flag in flags.marks(run.result, name))
    marks_of_both = "; ".join(flag.name for flag in flags.marks_of_difference(run.result, name))
    decided = defense.decided
    about: Row = {
        "defense": name,
        "flags": marks,
        "stopped_after": None if decided is None else decided.after,
    }
    yield about | {"measure": "natural"} | _count(defense.natural)
    if defense.bystanders.total:
        yield about | {"measure": "bystanders"} | _count(defense.bystanders)
    for attack in defense.attacks:
        yield from (about | row for row in _of_attack(attack))
    worst = _count(defense.worst.served)
    yield about | {"measure": "worst", "unit": defense.worst.unit} | worst
    difference = defense.difference
    if difference is not None:
        low, high = difference.interval or (None, None)
        yield about | {
            "measure": "difference",
            "unit": defense.worst.unit,
            "total": difference.total,
            "value": difference.value,
            "low": low,
            "high": high,
            "only_defended": difference.only_defended,
            "only_static": difference.only_static,
            "flags": marks_of_both,
            "verdict": defense.verdict.ruling if defense.verdict else None,
        }
    if defense.over_views is not None:
        over = defense.over_views.difference
        low, high = over.interval or (None, None)
        yield about | {
            "measure": "over-views",
            "unit": defense.worst.unit,
            "total": over.total,
            "value": over.value,
            "low": low,
            "high": high,
            "only_defended": over.only_defended,
            "only_static": over.only_static,
            "flags": marks_of_both,
        }
    if "relative" in defense.timing:
        yield about | {"measure": "cost", "value": defense.timing["relative"]}


def _of_attack(summary: AttackSummary) -> Iterator[Row]:
    mismatches: dict[str, Any] = {}
    if summary.claimed is not None:
        mismatches = {
            "claimed_but_served": summary.claimed_but_served,
            "served_wrong_unclaimed": summary.served_wrong_unclaimed,
        }
    about: Row = {"attack": summary.attack}
    if summary.kind == "attack":
        mismatches["carried"] = summary.carried
    yield about | {"measure": summary.kind} | _count(summary.served) | mismatches
    if summary.claimed is not None:
        yield about | {"measure": "claimed"} | _count(summary.claimed)
    if summary.bystanders.total:
        yield about | {"measure": f"{summary.kind}-bystanders"} | _count(summary.bystanders)


def _count(count: Count) -> Row:
    low, high = count.interval or (None, None)
    return {
        "correct": count.correct,
        "total": count.total,
        "value": count.share,
        "low": low,
        "high": high,
    }
