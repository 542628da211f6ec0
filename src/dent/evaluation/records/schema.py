"""The records of a run: what one line of the journal and each file of the folder may hold.

Counts and predictions are recorded; ratios are derived from them elsewhere. What was not scored
is null, never NaN and never zero. Whatever depends on the clock lies under `timing`.
"""

from typing import Annotated, Final, Literal

from pydantic import Field

from dent.evaluation.records.spec import (
    SCHEMA_VERSION,
    EvaluationSpec,
    OfSpec,
    SchemaVersion,
    Sha256,
)
from dent.storage.canonical import Record

TENSORS: Final = "adversarial"
_Count = Annotated[int, Field(ge=0)]
_Seconds = Annotated[float, Field(ge=0)]


class TensorRef(Record):
    """A safetensors file of the run folder, with the entry `adversarial`."""

    file: Annotated[str, Field(pattern=f"^{TENSORS}/[a-z0-9-]+[.]safetensors$")]
    sha256: Sha256
    """SHA-256 of the file."""
    shape: tuple[int, ...]
    """(attacked members, channels, height, width)."""


class Trace(Record):
    """The course of the adaptation, over the attacked members with finite values."""

    rows: _Count
    """Number of members in the means."""
    entropy: tuple[float, ...] | None
    """Mean entropy in nats, before every step and of the prediction; null without rows."""
    sigma: tuple[float, ...] | None
    """Mean sigma in pixels, one value or one per axis; null if the defense does not smooth."""
    sigma_by_step: tuple[tuple[float, ...], ...] | None = None
    """Sigma before every step and at the end; null if the defense does not record it."""
    status: dict[str, _Count]
    """Number of members by status of the adaptation; empty if the defense does not record it."""


class AttackHistory(Record):
    """Progress of an attack, one value per point: at evenly spaced gradients, and at the last one.

    An attack with several models, submissions, losses or targets computes several gradients per
    iteration or starts again. Its gradients are numbered through.
    """

    gradients: tuple[_Count, ...]
    """Number of gradients so far, including the one at this point."""
    broken: tuple[_Count, ...]
    """Number of attacked members that the defense itself misclassified at least once so far,
    including `carried` ones. The last value is from the end of the attack."""
    loss: tuple[float, ...]
    """Mean cross-entropy, in nats, of the latest prediction for each member that is not carried: by
    the defense, or by the model that the attack uses in its place."""
    norm: tuple[Annotated[float, Field(ge=0)], ...]
    """Mean l2 length of a member's gradient of the attack's own loss."""
    late: _Count
    """Number of members that were first misclassified in the last tenth of the gradients."""
    rising: _Count
    """Number of members that the attack does not claim, and whose highest cross-entropy rose by
    more than 1% of its whole rise in the last tenth of the gradients."""
    silent: _Count
    """Number of members that the attack broke but does not claim. If members of a batch depend on
    each other: number of members by which its most broken batch exceeds its claim."""
    untransferred: _Count
    """Number of members that the model in place of the defense misclassified, and the defense never
    did."""


class UnitTiming(Record):
    """Times of one unit, in seconds."""

    total: _Seconds
    """The whole unit, until its line is written."""
    attack: _Seconds
    serve: _Seconds
    """The submission."""
    static: _Seconds | None
    """One static forward of the same batch just before; only in natural units."""


class UnitRecord(Record):
    """Predictions of a defense for one batch, or for all batches if `batch` is null."""

    kind: Literal["natural", "attack", "transfer", "assembled", "challenge"]
    defense: str
    attack: str | None
    """By name; of a challenge, its `ChallengeRecord.short`."""
    batch: _Count | None
    seed: _Count
    served: tuple[int | None, ...]
    """Predicted class of every member, clean members included, in the order of the plan. Null if
    the defense gave no prediction (not finite), which counts as wrong."""
    views: dict[str, tuple[int | None, ...]] = Field(default={})
    """Other predictions for the same batch and seed, if they differ: from a copy that was
    `experienced` (it had answered the natural batch before), or `with gradients`. The worst one
    counts."""
    apart: dict[str, Annotated[float, Field(ge=0)]] = Field(default={})
    """By view, the largest change of a margin relative to its size, if it is more than rounding.
    `natural after`: of the natural batch after this one."""
    draws: tuple[tuple[int | None, ...], ...] = ()
    """Predictions under other seeds, if the defense is randomized. The first half chooses the worst
    submission, and the second half scores it."""
    trace: Trace
    claimed: tuple[bool, ...] | None = None
    """For each attacked member, whether the attack claims to have fooled it; null without an
    attack."""
    claimed_after: dict[str, _Count] | None = None
    """For a set of attacks: the number of fooled members after each part."""
    carried: tuple[bool, ...] | None = None
    """For each attacked member, whether this attack left it out because an earlier attack of the
    same kind broke it. It keeps that image. Null if every member was attacked."""
    sources: tuple[_Count, ...] | None = None
    """In an assembled batch: for each attacked member, the candidate that its image comes from."""
    queries: _Count = 0
    """Number of batches that the attack submitted."""
    backwards: _Count = 0
    """Number of gradients that the attack computed."""
    non_finite: _Count = 0
    """Number of rows, over all queries of the attack, without a prediction."""
    planned: _Count | None = None
    """Largest number of batches that the attack submits while members are still correct; null
    without an attack, and in older records."""
    used: tuple[Annotated[float, Field(ge=0)], ...] | None = None
    """For each attacked member, the size of its perturbation as a share of eps; null if `planned`
    is null, and if eps is 0."""
    loss: float | None = None
    """Mean cross-entropy of the attacked members on submission, in nats; null if none was finite,
    and in older records."""
    gradients: tuple[_Count, ...] | None = None
    """For each attacked member, the number of gradients that the attack computed; null without an
    attack, and in older records."""
    zero_gradients: tuple[_Count, ...] | None = None
    """The number of those gradients that were exactly zero."""
    history: AttackHistory | None = None
    """Progress of the attack. Null without an attack, without gradients of the batch in its order,
    and in older records."""
    notes: tuple[str, ...] = ()
    tensor: TensorRef | None = None
    """The submitted images; null if the batch is natural or assembled, or was not kept."""
    timing: UnitTiming

    @property
    def key(self) -> str:
        """The key of the unit."""
        return "/".join((self.kind, str(self.batch), self.defense, str(self.attack)))


class Comparison(Record):
    """How an answer changed when something else than the member changed."""

    members: _Count
    """Number of members in both batches."""
    changed: _Count
    """Number of members with another predicted class."""
    distance: float | None
    """Largest change of a margin (of a class to the predicted one) relative to its size, or to the
    usual size of margins if that is larger; null if an answer was not finite. Older versions: of a
    logit, relative to the largest one. Logits are compared because probabilities of a certain model
    barely change."""


class FollowUp(Record):
    """A small extra attack of the full diagnostics, on members of the first batch."""

    attack: str
    total: _Count
    correct: _Count
    """Members that are correct on submission."""
    before: _Count | None
    """Members that were correct under the attack with its own settings; null for the huge eps."""


class GradientCheck(Record):
    """Comparison of the exact gradient with finite differences; in older versions."""

    members: _Count
    """Number of members, from the first batch."""
    relative_error: Annotated[float, Field(ge=0)] | None = None
    """Null if there is no such gradient, and if the error is infinite: the prediction does not
    change along the gradient, or not by a finite amount."""
    threshold: float | None = None
    """Upper limit of the error; null if there is no such gradient."""
    dtype: str | None = None
    """Precision of the check."""
    missing: str | None = None
    """What the defense does not offer; null if there is a gradient."""


class GradientPoint(Record):
    """Comparison of a gradient with finite differences at one batch; see `gradient_check`."""

    members: _Count
    """Number of members that were moved."""
    errors: tuple[Annotated[float, Field(ge=0)] | None, ...]
    """For each moved member, the relative error of the gradient; null if it is infinite: the answer
    does not change, or not by a finite amount."""
    alike: Annotated[float, Field(ge=-1.001, le=1.001)]
    """Least cosine, over all members, between the attack's own gradient and the checked one."""
    same: _Count
    """Number of members with the same class in the precision of the check as on submission."""
    of: _Count
    coarse: tuple[Annotated[float, Field(ge=0)] | None, ...] | None = None
    """For each moved member, the smaller error of the attack's gradient over steps of half or a
    quarter of eps; null in older versions if the gradient was exact. The quarter is tried if half
    of eps is too much for some member."""


class GradientRecord(Record):
    """Whether the gradient that attacks follow is that of the predictions."""

    rung: str
    """`unrolled`, through the whole adaptation, or `plain`, the gradient of the answer."""
    missing: str | None = None
    """Why there is no gradient; null if there is one."""
    dtype: str | None = None
    """Precision of the check."""
    threshold: float | None = None
    """Upper limit of every member's error."""
    points: tuple[GradientPoint, ...] = ()
    """The natural images, and the images of a short attack."""
    classes: _Count | None = None
    """Number of logits of an image; null in older versions and if there is no gradient."""


class ProbeRecord(Record):
    """Answers of a defense to a few test queries about the first batch; see `diagnostics`."""

    kind: Literal["probe"] = "probe"
    defense: str
    attack: None = None
    batch: _Count | None = 0
    seed: _Count
    repeated: Comparison
    """The same few members with another seed."""
    again: Comparison
    """The same members and seed again, after other queries. It detects state."""
    alone: Comparison | None
    """The first members (half the batch, at most 16) alone; null for a batch of one."""
    strangers: Comparison | None
    """The same members, with noise instead of the other members."""
    permuted: Comparison | None
    """The same members in reverse order."""
    probabilities: _Count
    """Rows that are probabilities: in [0, 1] with a sum of 1."""
    rows: _Count
    """Rows checked for `probabilities`."""
    gradient_rows: _Count
    """Members checked for an input gradient: those predicted correctly."""
    zero_gradients: _Count | None
    """Those of them without a finite, nonzero gradient; null if the defense has no gradient."""
    huge_eps: FollowUp | None = None
    more_iterations: tuple[FollowUp, ...] | None = None
    gradient_check: GradientCheck | None = None
    """Only in older versions."""
    gradient: GradientRecord | None = None
    """Null if no attack of the run follows the exact gradient, in older versions, and in runs by
    attack, which have a `CertificateRecord`."""
    calls: _Count | None = None
    """Queries to the copy before `again`; null in older versions."""
    again_gradient: float | None = None
    """Largest distance, over members, of the gradient of that copy from that of a fresh one,
    relative to its length; null if there is none, and in older versions."""
    uncopied: str | None = None
    """Why the defense could not be copied. Then no query went to a fresh copy."""
    shares: bool | None = None
    """Whether its copies share a memory that new images change: a copy that was never queried had
    changed. Null if it could not be copied, and in older versions."""
    timing: UnitTiming

    @property
    def key(self) -> str:
        """The key of the unit."""
        return "/".join((self.kind, str(self.batch), self.defense, str(self.attack)))


class CertificateRecord(Record):
    """Checks of a defense that only a claim of a gain needs. They run last."""

    kind: Literal["certificate"] = "certificate"
    defense: str
    attack: None = None
    batch: _Count | None = 0
    seed: _Count
    huge_eps: FollowUp | None = None
    more_iterations: tuple[FollowUp, ...] | None = None
    gradient: GradientRecord | None = None
    """As in `ProbeRecord`, for runs by batch."""
    timing: UnitTiming

    @property
    def key(self) -> str:
        """The key of the unit."""
        return "/".join((self.kind, str(self.batch), self.defense, str(self.attack)))


JournalRecord = UnitRecord | ProbeRecord | CertificateRecord


class Line(Record):
    """One line of `journal.jsonl`."""

    record: Annotated[JournalRecord, Field(discriminator="kind")]
    sha256: Sha256
    """SHA-256 of the record's canonical JSON text."""


class Session(Record):
    """One process that worked on the run: software, machine and times."""

    versions: dict[str, str]
    platform: str
    device: str
    threads: _Count
    processors: _Count
    started: str
    """UTC, ISO 8601."""
    ended: str | None = None
    """Null while the process runs, and if it was killed."""
    outcome: Literal["complete", "interrupted", "failed"] | None = None
    message: str | None = None
    """Why the process failed."""
    units: _Count = 0
    """Number of units that it recorded."""
    timing: dict[str, _Seconds] = Field(default_factory=dict)
    """Seconds in total, in attacks, in submissions and in probes."""


class ChallengeRecord(Record):
    """Adversarial images from outside the run, as they were submitted to its defenses."""

    by: Annotated[str, Field(min_length=1, max_length=200)]
    """Who made them."""
    url: Annotated[str, Field(max_length=2000)] | None = None
    """Where to read more."""
    note: Annotated[str, Field(max_length=2000)] | None = None
    date: str
    """When they were submitted: UTC, ISO 8601."""
    digest: Sha256
    """SHA-256 of the samples' ids in ascending order, as int64, and of their images in that order,
    as float32, little-endian; in older records of the file of images."""
    defense: str
    """The defense, by name, that the images were made for."""
    attack: str | None = None
    """What made them here, as `package.module:factory`; null of a file of images."""
    units: Annotated[tuple[UnitRecord, ...], Field(min_length=1)]
    """One for each batch and each defense that they were submitted to."""
    session: Session
    """The process that submitted them."""

    @property
    def short(self) -> str:
        """What its units call it: the first digits of the digest."""
        return short_digest(self.digest)


def short_digest(digest: str) -> str:
    """Return what the units of a challenge call it."""
    return digest[:12]


class ChallengeLine(Record):
    """One line of `challenges.jsonl`."""

    record: ChallengeRecord
    sha256: Sha256
    """Of the record's canonical JSON text."""


RunStatus = Literal["running", "interrupted", "failed", "partial", "complete"]
"""A killed process also leaves `running`. `partial` means that a process has done its shard."""


class RunRecord(OfSpec):
    """`run.json`."""

    schema_version: SchemaVersion = SCHEMA_VERSION
    """Schema version of `spec`."""
    status: RunStatus
    identity: Sha256
    """SHA-256 of the canonical text of `spec`."""
    spec: EvaluationSpec
    plan: Sha256
    """SHA-256 of the canonical text of `plan.json`."""
    units: _Count
    """Lines of the complete journal."""
    sessions: tuple[Session, ...]
