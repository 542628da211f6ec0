"""The records of a run: the schema of a journal line and of each file of the folder.

Records hold counts and predictions. Ratios are derived from them elsewhere. A value that was not
scored is null, never NaN or zero. All values that depend on the clock are under `timing`.
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
SessionEnd = Literal["complete", "interrupted", "failed"]


class TensorRef(Record):
    """A reference to a safetensors file of the run folder with the entry `adversarial`."""

    file: Annotated[str, Field(pattern=f"^{TENSORS}/[a-z0-9-]+[.]safetensors$")]
    sha256: Sha256
    """SHA-256 of the file."""
    shape: tuple[int, ...]
    """(attacked members, channels, height, width)."""


class Trace(Record):
    """The course of the adaptation, averaged over the attacked members with finite values."""

    rows: _Count
    """Number of members that the means are over."""
    entropy: tuple[float, ...] | None
    """Mean entropy in nats, before every step and of the final prediction; null without rows."""
    sigma: tuple[float, ...] | None
    """Mean sigma in pixels, one value or one per axis; null if the defense does not smooth."""
    sigma_by_step: tuple[tuple[float, ...], ...] | None = None
    """Mean sigma before every step and at the end; null if the defense does not record it."""
    status: dict[str, _Count]
    """Number of members by status of the adaptation; empty if the defense does not record it."""


class AttackHistory(Record):
    """Progress of an attack, one value per point: at evenly spaced gradients, and at the last one.

    An attack with several models, submissions, losses or targets computes several gradients per
    iteration, or starts again. Its gradients are numbered consecutively.
    """

    gradients: tuple[_Count, ...]
    """Number of gradients so far, including the one at this point."""
    broken: tuple[_Count, ...]
    """Number of attacked members that the defense itself has misclassified at least once so far,
    including `carried` ones. The last value is from the end of the attack."""
    loss: tuple[float, ...]
    """Mean cross-entropy, in nats, of the latest prediction for each member that is not carried.
    The defense predicts, or the model that the attack uses in its place."""
    norm: tuple[Annotated[float, Field(ge=0)], ...]
    """Mean l2 norm over members of the gradient of the attack's own loss."""
    late: _Count
    """Number of members that were first misclassified in the last tenth of the gradients."""
    rising: _Count
    """Number of members that the attack does not claim to have fooled, and whose highest
    cross-entropy rose by more than 1% of its total rise in the last tenth of the gradients."""
    silent: _Count
    """Number of members that the attack broke but does not claim. If the defense is
    batch-dependent: how many more members the attack broke in its worst batch than it claims."""
    untransferred: _Count
    """Number of members that the model in place of the defense misclassified, but the defense never
    did."""


class UnitTiming(Record):
    """Times of one unit, in seconds."""

    total: _Seconds
    """The whole unit, until its record is complete."""
    attack: _Seconds
    serve: _Seconds
    """The submission."""
    static: _Seconds | None
    """One static forward of the same batch, just before; null except in natural units."""


def unit_key(kind: str, batch: int | None, defense: str, attack: str | None) -> str:
    """Return the name of a unit, which is unique in its run."""
    return "/".join((kind, str(batch), defense, str(attack)))


class UnitRecord(Record):
    """Predictions of a defense for one batch, or for all batches if `batch` is null."""

    kind: Literal["natural", "attack", "transfer", "assembled", "challenge"]
    defense: str
    attack: str | None
    """Name of the attack. For a challenge, its `ChallengeRecord.short`."""
    batch: _Count | None
    seed: _Count
    served: tuple[int | None, ...]
    """Predicted class of every member, including clean members, in the order of the plan. Null if
    a logit was NaN or the largest was infinite. This is not a prediction, and counts as wrong."""
    views: dict[str, tuple[int | None, ...]] = Field(default={})
    """Other predictions for the same batch and seed, if they differ: from an `experienced` copy,
    which had answered the natural batch before, or `with gradients`. The worst one counts."""
    apart: dict[str, Annotated[float, Field(ge=0)]] = Field(default={})
    """By view, the largest change of a margin relative to its size, if it is more than rounding.
    `natural after` is the change for the natural batch, submitted after this one."""
    draws: tuple[tuple[int | None, ...], ...] = ()
    """Predictions under other seeds, if the defense is randomized. The first half selects the worst
    submission, and the second half scores it."""
    trace: Trace
    claimed: tuple[bool, ...] | None = None
    """For each attacked member, whether the attack claims to have fooled it; null without an
    attack."""
    claimed_after: dict[str, _Count] | None = None
    """For a set of attacks: the number of fooled members after each attack of the set."""
    carried: tuple[bool, ...] | None = None
    """For each attacked member, whether this attack left it out because an earlier unit broke it
    (see `engine.carry`). Such a member keeps the image that broke it. Null if every member was
    attacked."""
    sources: tuple[_Count, ...] | None = None
    """For an assembled batch: for each attacked member, the index of the candidate of its image."""
    queries: _Count = 0
    """Number of batches that the attack sent to the defense."""
    backwards: _Count = 0
    """Number of gradients that the attack computed."""
    non_finite: _Count = 0
    """Number of rows without a prediction, over all queries of the attack."""
    planned: _Count | None = None
    """Maximum number of queries of the attack, if members stay correct. Null without an attack, if
    it is not known, and in older records."""
    used: tuple[Annotated[float, Field(ge=0)], ...] | None = None
    """For each attacked member, the size of its perturbation as a share of eps. Null except
    in attacks and challenges, if eps is 0, and in older records."""
    loss: float | None = None
    """Mean cross-entropy of the attacked members on submission, in nats. Null if no value was
    finite, and in older records."""
    gradients: tuple[_Count, ...] | None = None
    """For each attacked member, the number of gradients that the attack computed. Null without an
    attack, and in older records."""
    zero_gradients: tuple[_Count, ...] | None = None
    """For each attacked member, the number of these gradients that were exactly zero."""
    history: AttackHistory | None = None
    """Progress of the attack. Null without an attack, without gradients of the batch in the order
    of the plan, and in older records."""
    notes: tuple[str, ...] = ()
    tensor: TensorRef | None = None
    """The submitted images; null for a natural or assembled batch, or if they were not kept."""
    timing: UnitTiming

    @property
    def key(self) -> str:
        """The key of the unit."""
        return unit_key(self.kind, self.batch, self.defense, self.attack)


class Comparison(Record):
    """The change of an answer when something other than the member changed."""

    members: _Count
    """Number of compared members, which are in both batches."""
    changed: _Count
    """Number of members with another predicted class."""
    distance: float | None
    """Largest change of a margin (between a class and the predicted one) relative to its size, or
    to the usual size of margins if that is larger. Null if only one of two answers was finite. In
    older versions: largest change of a logit, relative to the largest logit. Logits are compared
    because the probabilities of a confident model barely change."""


class FollowUp(Record):
    """A small extra attack of the full diagnostics, on members of the first batch."""

    attack: str
    total: _Count
    correct: _Count
    """Number of members that are correct on submission."""
    before: _Count | None
    """Number that are correct under the attack with its own settings; null for the huge eps."""


class GradientCheck(Record):
    """A comparison of the exact gradient with finite differences, by older versions."""

    members: _Count
    """Number of members, from the first batch."""
    relative_error: Annotated[float, Field(ge=0)] | None = None
    """Null if there is no such gradient, or if the error is infinite: along the gradient, the
    prediction does not change or changes by an infinite amount."""
    threshold: float | None = None
    """Upper limit of the error; null if there is no such gradient."""
    dtype: str | None = None
    """Precision of the check."""
    missing: str | None = None
    """What the defense lacks for this gradient; null if there is a gradient."""


class GradientPoint(Record):
    """A comparison of a gradient with finite differences on one batch; see `gradient_check`."""

    members: _Count
    """Number of members that were moved."""
    errors: tuple[Annotated[float, Field(ge=0)] | None, ...]
    """For each moved member, the relative error of the gradient. Null if it is infinite, because
    the answer does not change or changes by an infinite amount."""
    alike: Annotated[float, Field(ge=-1.001, le=1.001)]
    """Smallest cosine, over all members, between the attack's own gradient and the checked one."""
    same: _Count
    """Number of members with the same class in the precision of the check as on submission, out of
    `of`."""
    of: _Count
    coarse: tuple[Annotated[float, Field(ge=0)] | None, ...] | None = None
    """For each moved member, the relative error of the attack's gradient over steps of half of eps.
    If that is too large for some member, a quarter of eps is tried as well, and the smaller error
    counts. Null in older versions if the gradient was exact."""


class GradientRecord(Record):
    """The check that attacks follow the gradient of the predictions."""

    rung: str
    """The checked gradient: `unrolled` through the whole adaptation, or `plain` of the answer."""
    missing: str | None = None
    """Why there is no gradient; null if there is one."""
    dtype: str | None = None
    """Precision of the check."""
    threshold: float | None = None
    """Upper limit of the error of every member."""
    points: tuple[GradientPoint, ...] = ()
    """The comparisons at the natural images, at the images of a short attack, and, except in older
    versions, at those of `further`."""
    classes: _Count | None = None
    """Number of logits per image; null if there is no gradient, and in older versions."""
    further: FollowUp | None = None
    """One more attack on the whole first batch, toward every class. Null if there is no gradient,
    and in older versions."""
    agreement: Annotated[float, Field(ge=-1.001, le=1.001)] | None = None
    """For a randomized defense, the median cosine, over members, between two means of gradients
    under other seeds. Null if it is not randomized, and in older versions."""
    checks: _Count | None = None
    """Version of the checks of the gradient. A claim of a gain needs the newest. Null if there is
    no gradient, and in older versions."""


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
    """The first members (half the batch, at most 16) by themselves; null for a batch of one."""
    strangers: Comparison | None
    """The same members, with noise in place of the other members."""
    permuted: Comparison | None
    """The same members in reverse order."""
    probabilities: _Count
    """Number of rows that are probabilities: in [0, 1] with a sum of 1."""
    rows: _Count
    """Number of rows checked for `probabilities`."""
    gradient_rows: _Count
    """Number of members checked for an input gradient: those that are predicted correctly."""
    zero_gradients: _Count | None
    """How many of them have no finite, nonzero gradient; null if the defense has no gradient."""
    huge_eps: FollowUp | None = None
    more_iterations: tuple[FollowUp, ...] | None = None
    gradient_check: GradientCheck | None = None
    """Only in records of older versions."""
    gradient: GradientRecord | None = None
    """Null if no attack of the run follows the exact gradient, in older versions, and in runs by
    attack. Those have a `CertificateRecord`."""
    calls: _Count | None = None
    """Number of queries to the copy before `again`; null in older versions."""
    again_gradient: float | None = None
    """Largest distance, over members, between the gradients of this copy and of a fresh one,
    relative to the length of the latter. Null if there is no gradient, and in older versions."""
    uncopied: str | None = None
    """Why the defense could not be copied, so that no query went to a fresh copy; else null."""
    shares: bool | None = None
    """Whether copies share a memory that new images change, because a copy changed that was never
    queried. Null if the defense could not be copied, and in older versions."""
    timing: UnitTiming

    @property
    def key(self) -> str:
        """The key of the unit."""
        return unit_key(self.kind, self.batch, self.defense, self.attack)


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
    """As in the `ProbeRecord` of runs by batch."""
    timing: UnitTiming

    @property
    def key(self) -> str:
        """The key of the unit."""
        return unit_key(self.kind, self.batch, self.defense, self.attack)


JournalRecord = UnitRecord | ProbeRecord | CertificateRecord


class Line(Record):
    """One line of `journal.jsonl`."""

    record: Annotated[JournalRecord, Field(discriminator="kind")]
    sha256: Sha256
    """SHA-256 of the record's canonical JSON text."""


class Session(Record):
    """A process that worked on the run: its software, machine and times."""

    versions: dict[str, str]
    platform: str
    device: str
    threads: _Count
    processors: _Count
    started: str
    """UTC, ISO 8601."""
    ended: str | None = None
    """Null while the process runs, and if it was killed."""
    outcome: SessionEnd | None = None
    message: str | None = None
    """The error message if the process failed."""
    units: _Count = 0
    """Number of units that the process recorded."""
    timing: dict[str, _Seconds] = Field(default_factory=dict)
    """Seconds by key: `total`, and in attacks, submissions and probes."""


class ChallengeRecord(Record):
    """Adversarial images from outside the run, as they were submitted to its defenses."""

    by: Annotated[str, Field(min_length=1, max_length=200)]
    """Who made the images."""
    url: Annotated[str, Field(max_length=2000)] | None = None
    """A link to more information."""
    note: Annotated[str, Field(max_length=2000)] | None = None
    date: str
    """When the images were submitted: UTC, ISO 8601."""
    digest: Sha256
    """SHA-256 of the samples' ids in ascending order, as int64, followed by their images in that
    order, as float32, little-endian. In older records, SHA-256 of the file of images."""
    defense: str
    """Name of the defense that the images were made for."""
    attack: str | None = None
    """The attack that made the images here, as `package.module:factory`; null for a file."""
    units: Annotated[tuple[UnitRecord, ...], Field(min_length=1)]
    """One unit for each batch and each defense that the images were submitted to."""
    session: Session
    """The process that submitted the images."""

    @property
    def short(self) -> str:
        """The id of the challenge in its units: the first digits of the digest."""
        return short_digest(self.digest)


def short_digest(digest: str) -> str:
    """Return the id of a challenge in its units: the first 12 digits of the digest."""
    return digest[:12]


class ChallengeLine(Record):
    """One line of `challenges.jsonl`."""

    record: ChallengeRecord
    sha256: Sha256
    """SHA-256 of the record's canonical JSON text."""


RunStatus = Literal["running", "interrupted", "failed", "partial", "complete"]
"""A killed process leaves `running` behind. `partial`: a process finished its shard."""


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
    """Number of lines of the complete journal."""
    sessions: tuple[Session, ...]
