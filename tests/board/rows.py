"""Make rows on the toy track."""

import atexit
import json
import shutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from dent import data
from dent.attacks import Defense
from dent.board import row_folder
from dent.board.pack import Manifest, pack
from dent.board.track_rules import attacks_of
from dent.board.tracks import HEADLINE, Track
from dent.evaluation import RecordedRun, Subject, evaluate
from dent.evaluation.records.journal import CHALLENGES, line_of
from dent.evaluation.records.plan import Batch, Unit, challenge_file
from dent.evaluation.records.schema import (
    ChallengeRecord,
    TensorRef,
    Trace,
    UnitRecord,
    UnitTiming,
)
from dent.evaluation.verification.record_checks import expected_seed
from dent.threat import ThreatModel
from tests.board.toys import HERE, Shifted, model

NAME = f"{HERE}:shifted"


def make_row(
    folder: Path,
    track: Track,
    nonce: str | None = "1f",
    variants: Mapping[str, Defense] | None = None,
    until: Literal["decided", "end"] = "decided",
    name: str = NAME,
) -> Path:
    """Evaluate one defense for each variant of a track, as `dent board run` does.

    Args:
        folder: The row.
        track: Its track.
        nonce: Draws half of the samples.
        variants: The defense by variant; by default the shifted one in the headline run.
        until: When the attacks may stop.
        name: What the runs call the defense, which its factory must be if it is to be restored.
    """
    if variants is None and name == NAME:
        usual = _usual(track.model_dump_json(), nonce, until)
        shutil.copytree(usual, folder, dirs_exist_ok=True)
        return folder
    return _evaluate(folder, track, nonce, variants or {HEADLINE: Shifted(model())}, until, name)


@cache
def _usual(track: str, nonce: str | None, until: Literal["decided", "end"]) -> Path:
    """Return a row of the shifted defense on a track (as JSON), made once in this process."""
    there = TemporaryDirectory()
    atexit.register(there.cleanup)
    defenses = {HEADLINE: Shifted(model())}
    return _evaluate(
        Path(there.name) / "row", Track.model_validate_json(track), nonce, defenses, until, NAME
    )


def _evaluate(
    folder: Path,
    track: Track,
    nonce: str | None,
    variants: Mapping[str, Defense],
    until: Literal["decided", "end"],
    name: str,
) -> Path:
    base = model()
    row_folder.begin(folder, track, nonce)
    for variant, defense in variants.items():
        subject = Subject(
            base,
            data.from_factory(track.dataset),
            {name: defense},
            attacks_of(track, variant),
            ThreatModel(track.norm, track.eps),
            track.model,
        )
        evaluate(subject, track.settings(variant, nonce, until), out=folder / variant)
    return folder


def manifest_of(folder: Path) -> Manifest:
    """Return the manifest of a run or row as it is now, even if its records are damaged."""
    with TemporaryDirectory() as there:
        return pack(folder, Path(there) / "now.tar.gz", checked=False).manifest


def forged_challenge(
    run: RecordedRun, by: str, defense: str, correct: Mapping[str, bool]
) -> ChallengeRecord:
    """Return a challenge without any images, with made-up predictions.

    Args:
        run: The run that is challenged.
        by: Who made it.
        defense: The defense that the images are made for.
        correct: For each defense with submissions, whether all its predictions are correct.
    """
    of_images = (by.encode().hex() + "0" * 64)[:64]
    return ChallengeRecord(
        by=by,
        date="2026-12-01T00:00:00Z",
        digest=of_images,
        defense=defense,
        units=tuple(
            _submitted(run, batch, name, of_images[:12], correct=right)
            for batch in run.plan.batches
            for name, right in correct.items()
        ),
        session=run.run.sessions[0],
    )


def _submitted(
    run: RecordedRun, batch: Batch, defense: str, name: str, *, correct: bool
) -> UnitRecord:
    unit = Unit("challenge", defense, name, batch.index)
    return UnitRecord(
        kind="challenge",
        defense=defense,
        attack=name,
        batch=batch.index,
        seed=expected_seed(run.run.spec, unit),
        served=tuple(label if correct else (label + 1) % 4 for label in batch.labels),
        trace=Trace(rows=0, entropy=None, sigma=None, status={}),
        tensor=TensorRef(
            file=challenge_file(name, batch.index),
            sha256="cd" * 32,
            shape=(batch.attacked, 3, 32, 32),
        ),
        timing=UnitTiming(total=1.0, attack=0.0, serve=1.0, static=None),
    )


def add_challenge(run: Path, challenge: ChallengeRecord) -> str:
    """Add a line to the challenges of a run, and return its SHA-256."""
    line = line_of(challenge)
    with (run / CHALLENGES).open("ab") as file:
        file.write(line)
    return str(json.loads(line)["sha256"])
