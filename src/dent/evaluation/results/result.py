"""The results of an evaluation. They follow only from its records, and can be derived again."""

from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import Field

from dent.attacks.adaptive import is_unavailable
from dent.evaluation.records.schema import Session, Trace, short_digest
from dent.evaluation.records.spec import (
    SCHEMA_VERSION,
    Budget,
    EvaluationSpec,
    OfSpec,
    SchemaVersion,
    Sha256,
)
from dent.evaluation.results.intervals import LEVEL, wilson
from dent.storage.canonical import Record
from dent.support.plural import counted
from dent.support.printable import one_line
from dent.support.rounding import percent, percent_bounds, points, points_bounds

_Count = Annotated[int, Field(ge=0)]
Interval = tuple[float, float]
Ruling = Literal["robust gain", "no gain", "harmful", "inconclusive"]
Ground = Literal["exact gradient certified", "surrogate gradient, unbeaten"]


class Count(Record):
    """A number of correct members, with their share of the total and its Wilson interval.

    Share and interval are null if the total is 0.
    """

    correct: _Count
    total: _Count
    share: float | None
    interval: Interval | None

    @classmethod
    def of(cls, correct: int, total: int) -> Self:
        """Return a count with its share and interval."""
        return cls(
            correct=correct,
            total=total,
            share=correct / total if total else None,
            interval=wilson(correct, total) if total else None,
        )


class Diagnostic(Record):
    """A sign that a number may be wrong; see docs/evaluation/protocol.md."""

    name: str
    state: Literal["raised", "passed", "not-run"]
    value: float | None
    threshold: float | None
    """The diagnostic is raised if the value is above it."""
    sentence: str

    @classmethod
    def judge(
        cls, name: str, value: float, threshold: float, raised: str, passed: str
    ) -> "Diagnostic":
        """Return the diagnostic for a value, raised or passed, with the sentence that fits."""
        is_raised = value > threshold
        return cls(
            name=name,
            state="raised" if is_raised else "passed",
            value=value,
            threshold=threshold,
            sentence=raised if is_raised else passed,
        )

    @classmethod
    def not_run(cls, name: str, why: str) -> "Diagnostic":
        """Return the diagnostic without a value, with the reason."""
        return cls(name=name, state="not-run", value=None, threshold=None, sentence=why)

    @property
    def raised(self) -> bool:
        """Whether the diagnostic is raised."""
        return self.state == "raised"


class AttackCurve(Record):
    """Progress of an attack over all its batches, one value per point.

    A batch that ended earlier keeps its last value.
    """

    gradients: tuple[_Count, ...]
    """Number of gradients of each batch so far."""
    broken: tuple[_Count, ...]
    """Number of attacked members that the defense itself misclassified at least once so far."""
    total: _Count
    """Number of attacked members."""
    loss: tuple[float, ...]
    """Mean cross-entropy of the latest predictions, in nats; see `AttackHistory`."""
    norm: tuple[float, ...]
    """Mean l2 length of a member's gradient."""


class AttackSummary(Record):
    """The accuracy under one attack."""

    kind: Literal["attack", "transfer", "assembled", "challenge"]
    attack: str | None
    """Name of the attack; for a challenge, the first 12 digits of its digest; null for assembled
    batches."""
    by: str | None = None
    """Who made the images of a challenge; null for the run's own attacks."""
    served: Count
    """Attacked members that are predicted correctly when their whole batch is submitted again: the
    robust accuracy."""
    bystanders: Count
    """Clean members of the same batches that are predicted correctly."""
    claimed: Count | None
    """Attacked members that the attack itself says it did not fool; null for transferred and
    assembled batches."""
    claimed_but_served: _Count
    """Members that the attack claims to have fooled, but that were predicted correctly."""
    served_wrong_unclaimed: _Count
    """Members that were predicted incorrectly, but that the attack did not claim to have fooled."""
    after: dict[str, Count]
    """For a set of attacks: the claimed count after each part, in order."""
    black_box: bool
    """Whether the attack only queries the defense. For a custom attack: whether it took no
    gradient."""
    carried: _Count = 0
    """Attacked members that this attack left out, because they had already fallen; see
    `UnitRecord`."""
    queries: _Count
    backwards: _Count
    non_finite: _Count
    """Attacked members without a prediction on submission. They count as wrong."""
    non_finite_in_attack: _Count
    trace: Trace
    """Entropy by step, sigma and statuses of the submitted batches."""
    notes: tuple[str, ...]
    batches: _Count
    timing: dict[str, float]
    curve: AttackCurve | None = None
    """Null without gradients, and in older records."""
    indicators: tuple[Diagnostic, ...] = ()
    """Indicators of attack failure; empty without gradients, and in older records."""

    @property
    def had_nothing_left(self) -> bool:
        """Whether every member had already fallen, so that the attack made no query."""
        return 0 < self.served.total == self.carried

    @property
    def ran(self) -> bool:
        """Whether an attack ran on the defense itself and had everything that it needs."""
        return self.kind == "attack" and self.batches > 0 and not is_unavailable(self.notes)


class ChallengeSummary(Record):
    """The result of adversarial images from outside the run; see docs/evaluation/challenge.md."""

    by: str
    """Who made them."""
    url: str | None
    note: str | None
    date: str
    """When they were submitted: UTC, ISO 8601."""
    digest: Sha256
    """As in `ChallengeRecord`."""
    made_for: str
    """The defense that they were made for. If it is the static model, they are submitted to all
    defenses."""
    attack: str | None
    """The attack that made them here; null if the images came in a file."""
    correct: _Count
    """Attacked members of the submitted batches that are still classified correctly."""
    total: _Count
    """Attacked members of the submitted batches."""
    lowered: _Count
    """Number of correct members by which it lowered the worst case that the run's own attacks and
    earlier challenges had left; 0 if it did not lower it."""

    @property
    def key(self) -> str:
        """The name of its submission, as in `WorstCase.by`."""
        return f"challenge/{short_digest(self.digest)}"


class WorstCase(Record):
    """The worst case over all submissions: natural batches, attacks, transfers and challenges."""

    served: Count
    unit: Literal["sample", "batch"]
    """`sample`: a member counts as correct if it was correct in every submission. `batch`: for each
    batch, the submission that left the fewest correct counts, because a batch is predicted as a
    whole."""
    by: dict[str, _Count]
    """For each submission, the number of samples that it broke first, or the number of batches that
    it decided."""


class Difference(Record):
    """The worst case of the defense minus the static model's, paired by sample."""

    value: float | None
    """A number in [-1, 1]; null without samples."""
    interval: Interval | None
    level: float = LEVEL
    method: str
    assumes: str
    total: _Count
    only_defended: _Count
    """Samples that only the defense predicts correctly."""
    only_static: _Count
    """Samples that only the static model predicts correctly."""
    static: Count
    static_unit: Literal["sample", "batch"]


class Dependence(Record):
    """Whether predictions depend on the other members of the batch."""

    declared: bool
    measured: bool | None
    """Null if it could not be measured: on a single member, or on a randomized defense."""
    undetermined: bool = False
    """Whether it is declared independent, its batches have several members, and the dependence
    could not be measured. Members then do not count as independent."""


class LadderRung(Record):
    """The accuracy under the best attack on one rung of the gradient ladder."""

    rung: str
    attack: str
    """Name of the attack; if several are on the rung, the one that left the fewest correct."""
    served: Count
    """As in `AttackSummary`."""


class Ladder(Record):
    """The rungs of the gradient ladder that attacked a defense, and the one that broke the most."""

    rungs: tuple[LadderRung, ...]
    """At least two, in order of cost."""
    won: str
    """The rung that left the fewest correct; among equals, the cheapest."""
    sentence: str


class Decision(Record):
    """The point at which a run stopped attacking a defense, when it could show no gain anymore."""

    after: _Count
    """Number of attacks on the defense that had run on every batch, without transfers from the
    static model."""
    of: _Count
    """Number of attacks in the run."""
    at_most: float
    """The difference at that point, in [-1, 1]. More attacks only lower it."""
    below: bool
    """Whether the whole interval of the difference was below 0."""


class OverViews(Record):
    """A comparison of a defense with a mean over views of each image, at about the same cost."""

    baseline: str
    """Name of the mean over views in the run."""
    views: _Count
    """Number of views that it averages."""
    difference: Difference
    """The worst case of the defense minus the baseline's, which fills the `static` fields."""


class Gate(Record):
    """A doubt that prevents a verdict of a gain."""

    name: str
    """Name of the diagnostic, or of another doubt."""
    open: bool
    """Whether the doubt remains."""
    follow_ups: tuple[str, ...] = ()
    """The attacks that ran because of it, in older records. Suites after the first run every attack
    anyway."""
    sentence: str


class Verdict(Record):
    """The verdict of the dynamic suite on a defense; see docs/evaluation/suite.md."""

    ruling: Ruling
    suite: Literal["dynamic"] = "dynamic"
    version: int = 1
    """Version of the suite."""
    rules: int = 1
    """Version of the rules; see docs/evaluation/suite.md."""
    budget: Budget
    """The largest budget for which the run has the whole suite."""
    ground: Ground | None = None
    """The evidence for a robust gain; null for other verdicts."""
    gates: tuple[Gate, ...]
    """Gates of the defense, open or closed."""
    static_gates: tuple[Gate, ...]
    """Gates of the static model. Open ones prevent the verdict *harmful*."""
    natural: Difference
    """Difference of the clean accuracies, paired by sample."""
    bystanders: Difference | None = None
    """Difference of the accuracies on the clean members of attacked batches, in the submission of
    each batch that leaves the fewest of them correct; null without clean members."""
    sentence: str


class Repeated(Record):
    """Accuracies of a randomized defense over several submissions."""

    draws: _Count
    """Number of draws that score each submission. As many others choose the worst one."""
    natural: float
    """Mean clean accuracy over these draws."""
    robust: float
    """Mean accuracy under the worst submissions."""
    natural_always: Count
    """Members that are correct in every draw without an attack."""
    robust_always: Count
    """Members that are correct in every draw under the worst submissions."""
    risk: tuple[float, ...] = ()
    """Resubmission risk under the worst submissions, for 1, 2, ... `draws` submissions: the share
    of members that at least one of so many submissions of the same images gets wrong."""
    natural_risk: tuple[float, ...] = ()
    """Resubmission risk without an attack."""


class DefenseResult(Record):
    """All results of one defense."""

    natural: Count
    """Clean accuracy on the members that are attacked later."""
    bystanders: Count
    """Clean accuracy on the other members of mixed batches."""
    attacks: tuple[AttackSummary, ...]
    worst: WorstCase
    difference: Difference | None
    """Null for the static model, and without a static model."""
    dependence: Dependence
    trace: Trace
    """Adaptation on the natural batches."""
    non_finite: _Count
    """Natural members without a prediction."""
    diagnostics: tuple[Diagnostic, ...]
    timing: dict[str, float]
    """`seconds` and `static_seconds`: medians over natural batches, measured side by side.
    `relative`: the median of their ratio. `batches`: the number of natural batches.
    `total_seconds`: the sum over all units."""
    ladder: Ladder | None = None
    """Null for the static model, and if fewer than two rungs of the gradient ladder attacked the
    same batches."""
    verdict: Verdict | None = None
    """Null for the static model, and without the whole dynamic suite."""
    repeated: Repeated | None = None
    """Null unless the defense is randomized."""
    decided: Decision | None = None
    """Null unless the attacks stopped early."""
    over_views: OverViews | None = None
    """Null if the run has no mean over views, or if it stopped early on either defense."""
    challenges: tuple[ChallengeSummary, ...] = ()
    """Adversarial images from outside the run, in the order of submission. They count in `attacks`,
    `worst` and `difference`, but not in diagnostics."""

    @property
    def broken_by(self) -> tuple[ChallengeSummary, ...]:
        """The challenges that lowered the worst case."""
        return tuple(challenge for challenge in self.challenges if challenge.lowered)

    @property
    def raised(self) -> tuple[Diagnostic, ...]:
        """The flags of this defense, which are shown beside each of its numbers."""
        return tuple(diagnostic for diagnostic in self.diagnostics if diagnostic.raised)

    def attack(self, name: str, kind: str = "attack") -> AttackSummary:
        """Return the summary of an attack by name.

        Raises:
            KeyError: There is no such attack.
        """
        for summary in self.attacks:
            if summary.attack == name and summary.kind == kind:
                return summary
        raise KeyError(name)


class EvaluationResult(OfSpec):
    """`result.json`: the results of a run."""

    schema_version: SchemaVersion = SCHEMA_VERSION
    """Schema version of `spec`."""
    rules: int = 1
    """Version of the rules for diagnostics and verdicts."""
    status: Literal["complete", "partial"]
    """`partial`: units are missing, and counts use only the recorded ones."""
    identity: Sha256
    spec: EvaluationSpec
    samples: _Count
    """Number of attacked samples in the plan."""
    batches: _Count
    units_done: _Count
    units_planned: _Count
    defenses: dict[str, DefenseResult]
    """Results by name, in the order of the spec."""
    diagnostics: tuple[Diagnostic, ...]
    """Diagnostics of the whole run."""
    sessions: tuple[Session, ...]
    timing: dict[str, float]
    """`total`, `attack`, `serve` and `probe`: seconds over all sessions. `overhead`: the share of
    the total that is none of these."""

    def __str__(self) -> str:
        """Return a line for the evaluation and a few for each defense, without a final break."""
        return "\n".join(map(one_line, _lines(self)))


def _lines(result: EvaluationResult) -> Iterator[str]:
    spec = result.spec
    yield (
        f"{spec.model.name} on {counted(result.samples, 'image')} of {spec.dataset.name}, "
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


def _figures(defense: DefenseResult) -> Iterator[str]:
    yield f"clean {_count(defense.natural, with_interval=False)}"
    at_most = "at most " if defense.decided is not None else ""
    yield f"worst case {at_most}{_count(defense.worst.served, with_interval=True)}"
    if defense.difference is not None and defense.difference.value is not None:
        compared = _difference(defense.difference, defense.difference.value)
        yield f"against static {at_most}{compared}"


def _count(count: Count, *, with_interval: bool) -> str:
    if count.share is None:
        return "not scored"
    bounds = percent_bounds(count.interval) if with_interval and count.interval else ""
    return f"{percent(count.share)} {bounds}".rstrip()


def _difference(difference: Difference, value: float) -> str:
    bounds = f" {points_bounds(difference.interval)}" if difference.interval else ""
    return f"{points(value)}{bounds} points"
