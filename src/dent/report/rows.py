"""One row for every number: what CSV and JSON hold, in words that a program can rely on."""

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
    "flags",
    "verdict",
)
"""`value` is a share of 1 with its 95% interval `low` to `high`; for `difference` a difference of
shares; for `cost` the median of a prediction's time over that of a static forward. What does not
apply or was not scored is empty (in JSON: null)."""

Row = dict[str, str | int | float | None]


def rows(runs: Sequence[NamedRun], flags: Flags) -> list[Row]:
    """All numbers of several runs.

    Returns:
        By run, defense, and measure: `natural`, `bystanders`, `attack`, `transfer`, `assembled`
        (robust accuracy as served), `claimed` (by the attack's own word), `attack-bystanders` and
        so on (natural members of attacked batches),
        `worst`, `difference`, `cost`. Every row names the raised diagnostics of its defense, those
        of the run included; of a difference, those of the static reference as well.
    """
    return [
        dict.fromkeys(COLUMNS) | _about(run) | row
        for run in runs
        for name, found in run.result.defenses.items()
        for row in _of_defense(run, name, found, flags)
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


def _of_defense(run: NamedRun, name: str, found: DefenseResult, flags: Flags) -> Iterator[Row]:
    marks = "; ".join(flag.name for flag in flags.marks(run.result, name))
    both = "; ".join(flag.name for flag in flags.marks_of_difference(run.result, name))
    about: Row = {"defense": name, "flags": marks}
    yield about | {"measure": "natural"} | _count(found.natural)
    if found.bystanders.total:
        yield about | {"measure": "bystanders"} | _count(found.bystanders)
    for attack in found.attacks:
        yield from (about | row for row in _of_attack(attack))
    worst = _count(found.worst.served)
    yield about | {"measure": "worst", "unit": found.worst.unit} | worst
    difference = found.difference
    if difference is not None:
        low, high = difference.interval or (None, None)
        yield about | {
            "measure": "difference",
            "unit": found.worst.unit,
            "total": difference.total,
            "value": difference.value,
            "low": low,
            "high": high,
            "only_defended": difference.only_defended,
            "only_static": difference.only_static,
            "flags": both,
            "verdict": found.verdict.ruling if found.verdict else None,
        }
    if "relative" in found.timing:
        yield about | {"measure": "cost", "value": found.timing["relative"]}


def _of_attack(found: AttackSummary) -> Iterator[Row]:
    mismatches: dict[str, Any] = {}
    if found.claimed is not None:
        mismatches = {
            "claimed_but_served": found.claimed_but_served,
            "served_wrong_unclaimed": found.served_wrong_unclaimed,
        }
    named: Row = {"attack": found.attack}
    yield named | {"measure": found.kind} | _count(found.served) | mismatches
    if found.claimed is not None:
        yield named | {"measure": "claimed"} | _count(found.claimed)
    if found.bystanders.total:
        yield named | {"measure": f"{found.kind}-bystanders"} | _count(found.bystanders)


def _count(found: Count) -> Row:
    low, high = found.interval or (None, None)
    return {
        "correct": found.correct,
        "total": found.total,
        "value": found.share,
        "low": low,
        "high": high,
    }
