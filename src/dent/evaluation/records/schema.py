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
    """Of the file."""
    shape: tuple[int, ...]
    """(members attacked, channels, height, width)."""


class Trace(Record):
    """How the adaptation went, over the attacked members whose values are finite."""

    rows: _Count
    """How many members the means are over."""
    entropy: tuple[float, ...] | None
    """Mean entropy in nats, before every step and at last of what is served; null without rows."""
    sigma: tuple[float, ...] | None
    """Mean sigma in pixels, one or one an axis; null where the defense does not smooth."""
    sigma_by_step: tuple[tuple[float, ...], ...] | None = None
    """The same before every step and at last; null where the defense does not say."""
    status: dict[str, _Count]
    """How many members' adaptation ended how; empty where the defense does not say."""


class UnitTiming(Record):
    """Seconds of one unit."""

    total: _Seconds
    """All of it, up to the writing of its line."""
    attack: _Seconds
    serve: _Seconds
    """The defense's answer that is recorded."""
    static: _Seconds | None
    """One static forward of the same batch, right before; measured in natural units alone."""


class UnitRecord(Record):
    """What a defense served for one batch (or, where `batch` is null, for all of them)."""

    kind: Literal["natural", "attack", "transfer", "assembled"]
    defense: str
    attack: str | None
    batch: _Count | None
    seed: _Count
    served: tuple[int | None, ...]
    """Predicted class of every member, clean members included, in the order of the plan; null where
    the defense gave no prediction (not finite), which counts as wrong."""
    views: dict[str, tuple[int | None, ...]] = Field(default={})
    """Other answers to the same batch and seed, where they differ: of a copy that was `experienced`
    (it had answered the natural batch before), or asked `with gradients`. The worst counts."""
    apart: dict[str, Annotated[float, Field(ge=0)]] = Field(default={})
    """By view, the largest change of a logit relative to the largest logit, where that is more than
    arithmetic. `natural after`: of the natural batch, once this one had been answered."""
    draws: tuple[tuple[int | None, ...], ...] = ()
    """Answers under other seeds, where something is drawn at random: the first half chooses the
    worst submission, the second half scores it."""
    trace: Trace
    claimed: tuple[bool, ...] | None = None
    """Per attacked member, whether the attack says that it fell; null where nothing attacked."""
    claimed_after: dict[str, _Count] | None = None
    """Of a set of attacks: how many had fallen after each part."""
    carried: tuple[bool, ...] | None = None
    """Per attacked member, whether it was not attacked, since an earlier attack of the same kind
    broke it: it keeps the image that did. Null where every member was attacked."""
    sources: tuple[_Count, ...] | None = None
    """Of an assembled batch: for each attacked member, which candidate it is taken from."""
    queries: _Count = 0
    """Batches that the attack submitted."""
    backwards: _Count = 0
    """Gradients that the attack took."""
    non_finite: _Count = 0
    """Rows, over all of the attack's queries, that were no prediction."""
    planned: _Count | None = None
    """Batches that the attack submits while members stand, at most; null where nothing attacked,
    and in older records."""
    used: tuple[Annotated[float, Field(ge=0)], ...] | None = None
    """Per attacked member, how far it was moved, as a share of eps; null where `planned` is, and
    where eps is 0."""
    loss: float | None = None
    """Mean cross-entropy of the attacked members as served, in nats; null where none was finite,
    and in older records."""
    gradients: tuple[_Count, ...] | None = None
    """Per attacked member, the gradients that the attack took; null where nothing attacked, and in
    records of older versions."""
    zero_gradients: tuple[_Count, ...] | None = None
    """Those of them that were exactly zero."""
    notes: tuple[str, ...] = ()
    tensor: TensorRef | None = None
    """What was submitted; null where it is the natural batch or assembled, or was not kept."""
    timing: UnitTiming

    @property
    def key(self) -> str:
        """The key of the unit."""
        return "/".join((self.kind, str(self.batch), self.defense, str(self.attack)))


class Comparison(Record):
    """What an answer did when only the rest of its batch changed."""

    members: _Count
    """How many members were asked in both batches."""
    changed: _Count
    """For how many the predicted class changed."""
    distance: float | None
    """Largest change of a logit, relative to the largest logit (both less the mean over classes);
    null where an answer was not finite. Not of a probability: those of a confident model hardly
    move, however much its logits do."""


class FollowUp(Record):
    """A small extra attack of the full diagnostics, on members of the first batch."""

    attack: str
    total: _Count
    correct: _Count
    """Still right, as served."""
    before: _Count | None
    """Still right under the attack as it was configured, on the same members; null if huge eps."""


class GradientCheck(Record):
    """What finite differences of what is served say of the exact gradient."""

    members: _Count
    """Of the first batch."""
    relative_error: Annotated[float, Field(ge=0)] | None = None
    """Null where there is no such gradient, and where it is infinite: what is served does not
    change along the gradient, or not by a finite amount."""
    threshold: float | None = None
    """What it must stay below; null where there is no such gradient."""
    dtype: str | None = None
    """In which it was computed."""
    missing: str | None = None
    """What the defense does not offer; null where there is a gradient."""


class GradientPoint(Record):
    """What moving images says of a gradient, at one batch; see `gradient_check`."""

    members: _Count
    """How many were moved."""
    errors: tuple[Annotated[float, Field(ge=0)] | None, ...]
    """By member moved, the relative error of the gradient; null where it is infinite: the answer
    does not move, or not by a finite amount."""
    alike: Annotated[float, Field(ge=-1.001, le=1.001)]
    """The least cosine, over all members, of the attack's own gradient with the one checked."""
    same: _Count
    """Members put into the same class in the precision of the check as when served."""
    of: _Count
    coarse: tuple[Annotated[float, Field(ge=0)] | None, ...] | None = None
    """By member moved, the error of the attack's gradient over steps of half or a quarter of eps,
    whichever is less; null where the gradient was exact."""


class GradientRecord(Record):
    """Whether the gradient that attacks follow is that of what is served."""

    rung: str
    """`unrolled`, through all of the adaptation, or `plain`, as the defense answers."""
    missing: str | None = None
    """Why there is no gradient; null where there is one."""
    dtype: str | None = None
    """In which it was checked."""
    threshold: float | None = None
    """What every member's error must stay below."""
    points: tuple[GradientPoint, ...] = ()
    """The natural images, and what a short attack reached."""


class ProbeRecord(Record):
    """What a few questions about the first batch say of a defense; see `diagnostics`."""

    kind: Literal["probe"] = "probe"
    defense: str
    attack: None = None
    batch: _Count | None = 0
    seed: _Count
    repeated: Comparison
    """The same few members, another seed."""
    again: Comparison
    """The same members and seed once more, after other questions: does it carry state?"""
    alone: Comparison | None
    """The first members (half the batch, at most 16) without the rest; null of a batch of one."""
    strangers: Comparison | None
    """The same members with noise in the place of the rest."""
    permuted: Comparison | None
    """The same members in reverse order."""
    probabilities: _Count
    """Rows that are probabilities: within [0, 1], summing to 1."""
    rows: _Count
    """Rows looked at for `probabilities`."""
    gradient_rows: _Count
    """Members whose input gradient was looked at: those predicted correctly."""
    zero_gradients: _Count | None
    """Those of them with none, or one that is not finite; null if the defense has no gradient."""
    huge_eps: FollowUp | None = None
    more_iterations: tuple[FollowUp, ...] | None = None
    gradient_check: GradientCheck | None = None
    """Of older versions."""
    gradient: GradientRecord | None = None
    """Null where no attack of the run follows the exact gradient, in older versions, and in runs by
    attack, which have a `CertificateRecord`."""
    calls: _Count | None = None
    """What the copy behind `again` had answered before; null in older versions."""
    again_gradient: float | None = None
    """How far the gradient of that copy lies from that of a fresh one, relative to its length; null
    where there is none, and in older versions."""
    uncopied: str | None = None
    """Why the defense could not be copied, so that it was experienced throughout."""
    timing: UnitTiming

    @property
    def key(self) -> str:
        """The key of the unit."""
        return "/".join((self.kind, str(self.batch), self.defense, str(self.attack)))


class CertificateRecord(Record):
    """What a claim of a gain needs to know of a defense; asked last, as few defenses get so far."""

    kind: Literal["certificate"] = "certificate"
    defense: str
    attack: None = None
    batch: _Count | None = 0
    seed: _Count
    huge_eps: FollowUp | None = None
    more_iterations: tuple[FollowUp, ...] | None = None
    gradient: GradientRecord | None = None
    """As in `ProbeRecord`, of runs by batch."""
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
    """Of the record's canonical JSON text."""


class Session(Record):
    """One process that worked on the run: which software on which machine, and how long."""

    versions: dict[str, str]
    platform: str
    device: str
    threads: _Count
    processors: _Count
    started: str
    """UTC, ISO 8601."""
    ended: str | None = None
    """Null while it runs, and where it was killed."""
    outcome: Literal["complete", "interrupted", "failed"] | None = None
    message: str | None = None
    """Why it failed."""
    units: _Count = 0
    """Units it recorded."""
    timing: dict[str, _Seconds] = Field(default_factory=dict)
    """Seconds in all, in attacks, in the defenses' answers and in probes."""


RunStatus = Literal["running", "interrupted", "failed", "partial", "complete"]
"""`running` is also left behind by a process that was killed; `partial` by one that did its shard
of the run."""


class RunRecord(OfSpec):
    """`run.json`."""

    schema_version: SchemaVersion = SCHEMA_VERSION
    """Of `spec`."""
    status: RunStatus
    identity: Sha256
    """SHA-256 of the canonical text of `spec`."""
    spec: EvaluationSpec
    plan: Sha256
    """SHA-256 of the canonical text of `plan.json`."""
    units: _Count
    """Lines that the complete journal has."""
    sessions: tuple[Session, ...]
