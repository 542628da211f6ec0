"""What an evaluation found: derived from the records alone, and the same again from them."""

from typing import Annotated, Literal, Self

from pydantic import Field

from dent.attacks.adaptive import NOT_AVAILABLE
from dent.evaluation.records.schema import Session, Trace
from dent.evaluation.records.spec import (
    SCHEMA_VERSION,
    EvaluationSpec,
    OfSpec,
    SchemaVersion,
    Sha256,
)
from dent.evaluation.results.intervals import LEVEL, wilson
from dent.storage.canonical import Record

_Count = Annotated[int, Field(ge=0)]
Interval = tuple[float, float]


class Count(Record):
    """So many of so many, with the share and its Wilson interval; null where there are none."""

    correct: _Count
    total: _Count
    share: float | None
    interval: Interval | None

    @classmethod
    def of(cls, correct: int, total: int) -> Self:
        """Count, with what is derived from it."""
        return cls(
            correct=correct,
            total=total,
            share=correct / total if total else None,
            interval=wilson(correct, total) if total else None,
        )


class AttackSummary(Record):
    """What one attack left of a defense."""

    kind: Literal["attack", "transfer", "assembled"]
    attack: str | None
    """The attack's name; null for the assembled batches."""
    served: Count
    """Attacked members still classified correctly when their whole batch is submitted again: the
    robust accuracy."""
    bystanders: Count
    """Natural members of attacked batches classified correctly meanwhile."""
    claimed: Count | None
    """The same by the attack's own word; null where nothing attacked the defense itself."""
    claimed_but_served: _Count
    """Members that the attack says fell, and that were served correctly."""
    served_wrong_unclaimed: _Count
    """Members that were served wrongly without the attack saying that they fell."""
    after: dict[str, Count]
    """Of a set of attacks: the claimed count after each part, in order."""
    black_box: bool
    """It took no gradient."""
    queries: _Count
    backwards: _Count
    non_finite: _Count
    """Attacked members for which the defense gave no prediction when served; they are wrong."""
    non_finite_in_attack: _Count
    trace: Trace
    """Entropy by step, sigma and statuses of the served batches."""
    notes: tuple[str, ...]
    batches: _Count
    timing: dict[str, float]

    @property
    def ran(self) -> bool:
        """Whether an attack on the defense itself is recorded that had all that it takes."""
        return (
            self.kind == "attack"
            and self.batches > 0
            and not any(note.startswith(NOT_AVAILABLE) for note in self.notes)
        )


class WorstCase(Record):
    """What the worst of all that was submitted leaves: natural batches, attacks, transfers."""

    served: Count
    unit: Literal["sample", "batch"]
    """`sample`: a member counts as right if everything left it right. `batch`: of each batch, the
    submission that left fewest right, since no other batch was ever answered as a whole."""
    by: dict[str, _Count]
    """By submission, the samples (the first that broke them) or batches that it decided."""


class Difference(Record):
    """The defended worst case less the static one under the same budget, paired by sample."""

    value: float | None
    """In [-1, 1]; null without samples."""
    interval: Interval | None
    level: float = LEVEL
    method: str
    assumes: str
    total: _Count
    only_defended: _Count
    """Samples that only the defense gets right."""
    only_static: _Count
    """Samples that only the static model gets right."""
    static: Count
    static_unit: Literal["sample", "batch"]


class Dependence(Record):
    """Whether a prediction depends on the rest of its batch."""

    declared: bool
    measured: bool | None
    """Null where it could not be measured: a single member, or a randomized defense."""


class Diagnostic(Record):
    """One sign that a number should not be taken at its word; see docs/evaluation/protocol.md."""

    name: str
    state: Literal["raised", "passed", "not-run"]
    value: float | None
    threshold: float | None
    """Raised above it."""
    sentence: str

    @property
    def raised(self) -> bool:
        """Whether it was."""
        return self.state == "raised"


class LadderRung(Record):
    """What the best attack on one rung of the gradient ladder left of a defense."""

    rung: str
    attack: str
    """Its name; of several on the rung, the one that left least."""
    served: Count
    """As in `AttackSummary`."""


class Ladder(Record):
    """The rungs of the gradient ladder that attacked a defense, and which went furthest."""

    rungs: tuple[LadderRung, ...]
    """At least two, cheap ones first."""
    won: str
    """The rung that left least; of equals the cheapest."""
    sentence: str


class Decision(Record):
    """Where a run of the suite stopped attacking a defense: no gain was possible any more."""

    after: _Count
    """Attacks on the defense that had run by then, beside what was found on the static model."""
    of: _Count
    """Attacks of the run."""
    at_most: float
    """The difference then, in [-1, 1]: more attacks only lower it."""
    below: bool
    """Whether its whole interval lay below 0."""


class OverViews(Record):
    """A defense beside a mean over views of each image, which costs about as much."""

    baseline: str
    """Name of that defense in the run."""
    views: _Count
    """Over how many views it averages."""
    difference: Difference
    """The worst case less the baseline's; what it calls static is the baseline."""


class Gate(Record):
    """Something that stands between a defense's numbers and a verdict."""

    name: str
    """The diagnostic's, or what else it is."""
    open: bool
    """Whether it still stands: a claim may not pass."""
    follow_ups: tuple[str, ...]
    """The attacks that were run because of it."""
    sentence: str


class Verdict(Record):
    """What the dynamic suite says of a defense; see docs/evaluation/suite.md."""

    ruling: Literal["robust gain", "no gain", "harmful", "inconclusive"]
    suite: Literal["dynamic"] = "dynamic"
    version: int = 1
    """Of the suite."""
    rules: int = 1
    """Version of the rules by which it was ruled; see docs/evaluation/suite.md."""
    budget: Literal["small", "standard", "full"]
    """The largest under which the run had the whole suite."""
    ground: Literal["exact gradient certified", "surrogate gradient, unbeaten"] | None = None
    """What a robust gain stands on; null without one."""
    gates: tuple[Gate, ...]
    """Of the defense: all that were put up, open or closed."""
    static_gates: tuple[Gate, ...]
    """Of the static model: they stand between its numbers and the word harmful."""
    natural: Difference
    """Of the clean accuracies, paired by sample as the worst cases are."""
    sentence: str


class Repeated(Record):
    """A defense whose answers are drawn at random, over several submissions."""

    draws: _Count
    """That score each submission; as many others chose the worst one."""
    natural: float
    """Mean clean accuracy over them."""
    robust: float
    """Mean accuracy under the worst submissions."""
    natural_always: Count
    """Members right in every draw without an attack: what repeating alone takes."""
    robust_always: Count
    """Members right in every draw under the worst submissions."""
    risk: tuple[float, ...] = ()
    """Resubmission risk under the worst submissions, for 1, 2, ... `draws` submissions: the share
    of members that at least one of so many submissions of the same images gets wrong."""
    natural_risk: tuple[float, ...] = ()
    """The same without an attack."""


class DefenseResult(Record):
    """All about one defense."""

    natural: Count
    """Members to be attacked, served in their natural batch."""
    bystanders: Count
    """The others, there."""
    attacks: tuple[AttackSummary, ...]
    worst: WorstCase
    difference: Difference | None
    """Null for the static reference, and where there is none."""
    dependence: Dependence
    trace: Trace
    """Of the natural batches."""
    non_finite: _Count
    """Natural members without a prediction."""
    diagnostics: tuple[Diagnostic, ...]
    timing: dict[str, float]
    """`seconds` and `static_seconds`: medians over natural batches, measured side by side;
    `relative`: the median of their ratio; `batches`; and `total_seconds` of all units."""
    ladder: Ladder | None = None
    """Null for the static reference, and where fewer than two rungs of the gradient ladder attacked
    the same batches."""
    verdict: Verdict | None = None
    """Null for the static reference, and wherever the dynamic suite was not run as a whole."""
    repeated: Repeated | None = None
    """Null where nothing is drawn at random."""
    decided: Decision | None = None
    """Null where every attack that was planned ran, or has yet to run."""
    over_views: OverViews | None = None
    """Null without a mean over views in the run, and where the run stopped early on either."""

    @property
    def raised(self) -> tuple[Diagnostic, ...]:
        """The flags to show beside every number of this defense."""
        return tuple(diagnostic for diagnostic in self.diagnostics if diagnostic.raised)

    def attack(self, name: str, kind: str = "attack") -> AttackSummary:
        """The summary of an attack by name.

        Raises:
            KeyError: There is none.
        """
        for summary in self.attacks:
            if summary.attack == name and summary.kind == kind:
                return summary
        raise KeyError(name)


class EvaluationResult(OfSpec):
    """`result.json`: what a run found."""

    schema_version: SchemaVersion = SCHEMA_VERSION
    """Of `spec`."""
    rules: int = 1
    """Version of the rules by which diagnostics and verdicts were derived from the records."""
    status: Literal["complete", "partial"]
    """`partial`: units are missing; counts are over those that are there."""
    identity: Sha256
    spec: EvaluationSpec
    samples: _Count
    """Attacked samples of the plan."""
    batches: _Count
    units_done: _Count
    units_planned: _Count
    defenses: dict[str, DefenseResult]
    """By name, in the order of the spec."""
    diagnostics: tuple[Diagnostic, ...]
    """Of the run as a whole."""
    sessions: tuple[Session, ...]
    timing: dict[str, float]
    """`total`, `attack`, `serve`, `probe` in seconds over all sessions; `overhead`: the share of
    the total that is none of these."""
