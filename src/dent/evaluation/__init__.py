"""Evaluate defenses, static and dynamic, so that nobody has to take the result on faith.

    from dent.evaluation import Settings, Subject, evaluate

    subject = Subject(model, dataset, {"dent+": Dent(model)}, [make("apgd-ce")], threat)
    result = evaluate(subject, Settings(n=256, batch_size=64), out=Path("runs/first"))

The batch is the unit: its members never change, and what counts is what the defense serves when
the whole batch is submitted once more. See docs/evaluation.
"""

from dent.evaluation.cost import CostEstimate, DefenseCost, estimate
from dent.evaluation.errors import (
    LockedError,
    RecordError,
    SchemaVersionError,
    SpecMismatchError,
)
from dent.evaluation.progress import Progress
from dent.evaluation.reading import RecordedRun, SampleAnswer, load_run
from dent.evaluation.reattack import Reattack, Reattacked
from dent.evaluation.result import (
    AttackSummary,
    Count,
    DefenseResult,
    Diagnostic,
    Difference,
    EvaluationResult,
    WorstCase,
)
from dent.evaluation.run import evaluate
from dent.evaluation.spec import EvaluationSpec, Settings
from dent.evaluation.subject import Subject, describe
from dent.evaluation.suite import suite
from dent.evaluation.sweep import read_sweep, sweep
from dent.evaluation.verify import Check, Verification, verify

__all__ = [
    "AttackSummary",
    "Check",
    "CostEstimate",
    "Count",
    "DefenseCost",
    "DefenseResult",
    "Diagnostic",
    "Difference",
    "EvaluationResult",
    "EvaluationSpec",
    "LockedError",
    "Progress",
    "Reattack",
    "Reattacked",
    "RecordError",
    "RecordedRun",
    "SampleAnswer",
    "SchemaVersionError",
    "Settings",
    "SpecMismatchError",
    "Subject",
    "Verification",
    "WorstCase",
    "describe",
    "estimate",
    "evaluate",
    "load_run",
    "read_sweep",
    "suite",
    "sweep",
    "verify",
]
