"""Record how far a row has been checked, and who checked it. Entries are added, but never removed.

An entry counts only for the files that were checked: it has their digests, which are compared
whenever the row is read. `challenges.jsonl` grows after a check, so an entry lists the challenges
that were checked.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field

from dent.evaluation.records.record_file import dump, read_record
from dent.evaluation.records.spec import STATIC, Sha256
from dent.evaluation.verification.reattack import RerunCount
from dent.storage.canonical import Record
from dent.storage.disk import is_there, write_atomically
from dent.support.plural import agreeing, counted

TRUST: Final = "trust.json"
State = Literal["claimed", "records verified", "re-attacked"]
STATES: Final[tuple[State, ...]] = ("claimed", "records verified", "re-attacked")
"""From the weakest to the strongest."""


@dataclass(frozen=True)
class CheckedFiles:
    """The digests of the files of a row that a check covers.

    Attributes:
        identity: Identity of the headline run.
        manifest: Digest of the records, as in `submission.json`.
        submission: Digest of the submission; None if there is none.
    """

    identity: str
    manifest: str
    submission: str | None


class TrustEntry(Record):
    """One check that a row has passed."""

    state: Literal["records verified", "re-attacked"]
    identity: Sha256
    """Identity of the run that was checked. A check of one run says nothing about other runs."""
    manifest: Sha256 | None = None
    """Digest of the records that were checked, as in `submission.json`; null in older entries,
    which do not count."""
    submission: Sha256 | None = None
    """Digest of `submission.json` as it was checked (`RowSubmission.digest`); null in older
    entries, which do not count if the row has a submission."""
    by: Annotated[str, Field(min_length=1, max_length=200)]
    date: Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}$")]
    nonce: str | None = None
    """The nonce that drew the attacks that were run again."""
    nonce_source: Annotated[str, Field(min_length=1, max_length=500)] | None = None
    """Where the other nonce comes from, which drew half of the row's samples; null if it was not
    stated."""
    nonce_by: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    """Who drew that nonce."""
    units: Annotated[int, Field(ge=0)] = 0
    """Number of attacks that were run again."""
    of: Annotated[int, Field(ge=0)] = 0
    """Number of recorded attacks."""
    by_defense: dict[str, RerunCount] = Field(default_factory=dict)
    """`units` and `of` by defense of the headline run; empty in older entries."""
    challenges: dict[str, tuple[Sha256, ...]] = Field(default_factory=dict)
    """By run of the row, the `sha256` of each line of `challenges.jsonl` that was checked."""

    @property
    def attacks(self) -> str:
        """The attacks that ran again in words, such as `1 of 80 attacks on the base model`."""
        if not self.by_defense:
            return f"{self.units} of {counted(self.of, 'attack')}"
        return "; ".join(
            _rerun(count, "the base model" if name == STATIC else "the defense")
            for name, count in self.by_defense.items()
        )


class TrustRecord(Record):
    """`trust.json` in the folder of a row."""

    schema_version: Literal[1] = 1
    entries: tuple[TrustEntry, ...] = ()
    void: Annotated[str, Field(min_length=1, max_length=500)] | None = None
    """Why the row does not count, written by a maintainer; null if it does."""

    def of(self, files: CheckedFiles) -> tuple[TrustEntry, ...]:
        """Return the checks of one run with these records and this submission."""
        return tuple(
            entry
            for entry in self.of_run(files.identity)
            if (entry.manifest, entry.submission) == (files.manifest, files.submission)
        )

    def of_run(self, identity: str) -> tuple[TrustEntry, ...]:
        """Return the checks of one run, whatever its records were."""
        return tuple(entry for entry in self.entries if entry.identity == identity)

    def unbound(self, files: CheckedFiles) -> str | None:
        """Return why no check counts for these files although there are some; None otherwise."""
        if not self.entries or self.of(files):
            return None
        own = self.of_run(files.identity)
        checks = f"the {counted(len(self.entries), 'check')} in {TRUST}"
        names = agreeing(len(self.entries), "name")
        if not own:
            return f"{checks} {agreeing(len(self.entries), 'are')} of another run"
        if all(entry.manifest is None for entry in own):
            return f"{checks} {names} no records"
        same = [entry for entry in own if entry.manifest == files.manifest]
        if not same:
            return f"the records have changed since {checks}"
        if all(entry.submission is None for entry in same):
            return f"{checks} {names} no submission"
        return f"the submission has changed since {checks}"


def _rerun(count: RerunCount, target: str) -> str:
    if not count.of:
        return f"{target} was not attacked"
    return f"{count.units} of {counted(count.of, 'attack')} on {target}"


def challenges_in(entries: Iterable[TrustEntry]) -> dict[str, frozenset[str]]:
    """Return, by run of a row, the checksums of the challenges that any of the checks covered."""
    found: dict[str, frozenset[str]] = {}
    for entry in entries:
        for name, checked in entry.challenges.items():
            found[name] = found.get(name, frozenset()).union(checked)
    return found


def read_trust(folder: Path) -> TrustRecord:
    """Read the checks of a row.

    Raises:
        RecordError: `trust.json` is damaged.
    """
    if not is_there(folder / TRUST):
        return TrustRecord()
    return read_record(folder / TRUST, TrustRecord)


def add_trust(folder: Path, entry: TrustEntry) -> None:
    """Add a check to the checks of a row.

    Raises:
        RecordError: `trust.json` is damaged, or cannot be written.
    """
    record = read_trust(folder)
    if entry not in record.entries:
        changed = record.model_copy(update={"entries": (*record.entries, entry)})
        write_atomically(folder / TRUST, dump(changed))


def state_of(entries: tuple[TrustEntry, ...]) -> State:
    """Return the strongest state among the checks of a run."""
    return max((entry.state for entry in entries), key=STATES.index, default="claimed")
