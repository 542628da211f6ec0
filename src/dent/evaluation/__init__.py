"""Evaluate defenses, static and dynamic, with results that anyone can check.

    from dent.evaluation import Settings, Subject, evaluate

    subject = Subject(model, dataset, {"dent+": Dent(model)}, [make("apgd-ce")], threat)
    result = evaluate(subject, Settings(n=256, batch_size=32), out=Path("runs/first"))

The unit of an evaluation is the batch, whose members never change. Only the predictions on
submission count: after an attack, the whole batch is submitted once more. See docs/evaluation.
"""

from typing import TYPE_CHECKING

from dent.support.lazy import lazy

if TYPE_CHECKING:
    from dent.evaluation.challenges.challenge import Challenged, challenge, estimate_challenge
    from dent.evaluation.engine.cost import CostEstimate, DefenseCost, estimate
    from dent.evaluation.engine.progress import Progress
    from dent.evaluation.merging import ConflictError, Merged, merge
    from dent.evaluation.records.shard import Shard
    from dent.evaluation.records.spec import EvaluationSpec, Settings
    from dent.evaluation.records.sweep import read_sweep
    from dent.evaluation.restoration import restore
    from dent.evaluation.results.recorded_run import RecordedRun, SampleAnswer, load_run
    from dent.evaluation.results.result import (
        AttackSummary,
        ChallengeSummary,
        Count,
        Decision,
        DefenseResult,
        Dependence,
        Diagnostic,
        Difference,
        EvaluationResult,
        Gate,
        Verdict,
        WorstCase,
    )
    from dent.evaluation.run import evaluate
    from dent.evaluation.streams import StreamBatch, StreamResult, stream
    from dent.evaluation.subject import Subject, describe
    from dent.evaluation.suites import suite
    from dent.evaluation.sweeps import sweep
    from dent.evaluation.verification.outcome import Check, Verification
    from dent.evaluation.verification.reattack import Reattack, Reattacked
    from dent.evaluation.verification.verify import verify
    from dent.storage.errors import (
        LockedError,
        RecordError,
        SchemaVersionError,
        SpecMismatchError,
    )

__all__ = [
    "AttackSummary",
    "ChallengeSummary",
    "Challenged",
    "Check",
    "ConflictError",
    "CostEstimate",
    "Count",
    "Decision",
    "DefenseCost",
    "DefenseResult",
    "Dependence",
    "Diagnostic",
    "Difference",
    "EvaluationResult",
    "EvaluationSpec",
    "Gate",
    "LockedError",
    "Merged",
    "Progress",
    "Reattack",
    "Reattacked",
    "RecordError",
    "RecordedRun",
    "SampleAnswer",
    "SchemaVersionError",
    "Settings",
    "Shard",
    "SpecMismatchError",
    "StreamBatch",
    "StreamResult",
    "Subject",
    "Verdict",
    "Verification",
    "WorstCase",
    "challenge",
    "describe",
    "estimate",
    "estimate_challenge",
    "evaluate",
    "load_run",
    "merge",
    "read_sweep",
    "restore",
    "stream",
    "suite",
    "sweep",
    "verify",
]

_MODULES = {
    "dent.evaluation.challenges.challenge": ("Challenged", "challenge", "estimate_challenge"),
    "dent.evaluation.engine.cost": (
        "CostEstimate",
        "DefenseCost",
        "estimate",
    ),
    "dent.evaluation.engine.progress": ("Progress",),
    "dent.evaluation.merging": (
        "ConflictError",
        "Merged",
        "merge",
    ),
    "dent.evaluation.records.shard": ("Shard",),
    "dent.evaluation.records.spec": (
        "EvaluationSpec",
        "Settings",
    ),
    "dent.evaluation.records.sweep": ("read_sweep",),
    "dent.evaluation.restoration": ("restore",),
    "dent.evaluation.results.recorded_run": (
        "RecordedRun",
        "SampleAnswer",
        "load_run",
    ),
    "dent.evaluation.results.result": (
        "AttackSummary",
        "ChallengeSummary",
        "Count",
        "Decision",
        "DefenseResult",
        "Dependence",
        "Diagnostic",
        "Difference",
        "EvaluationResult",
        "Gate",
        "Verdict",
        "WorstCase",
    ),
    "dent.evaluation.run": ("evaluate",),
    "dent.evaluation.streams": (
        "StreamBatch",
        "StreamResult",
        "stream",
    ),
    "dent.evaluation.subject": (
        "Subject",
        "describe",
    ),
    "dent.evaluation.suites": ("suite",),
    "dent.evaluation.sweeps": ("sweep",),
    "dent.evaluation.verification.outcome": (
        "Check",
        "Verification",
    ),
    "dent.evaluation.verification.reattack": (
        "Reattack",
        "Reattacked",
    ),
    "dent.evaluation.verification.verify": ("verify",),
    "dent.storage.errors": (
        "LockedError",
        "RecordError",
        "SchemaVersionError",
        "SpecMismatchError",
    ),
}
"""The public names, by the module that defines them."""

if not TYPE_CHECKING:  # with it, a type checker would accept any name
    __getattr__, __dir__ = lazy(__name__, _MODULES)
