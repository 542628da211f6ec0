"""Make rows on the toy track."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from dent import data
from dent.attacks import Defense
from dent.board import row
from dent.board.running import attacks_of
from dent.board.tracks import HEADLINE, Track
from dent.evaluation import Subject, evaluate
from dent.threat import ThreatModel
from tests.board.toys import HERE, Shifted, model

NAME = f"{HERE}:shifted"


def make_row(
    folder: Path,
    track: Track,
    nonce: str | None = "1f",
    variants: Mapping[str, Defense] | None = None,
    until: Literal["decided", "end"] = "decided",
) -> Path:
    """Evaluate one defense for each variant of a track, as `dent board run` does."""
    base = model()
    row.begin(folder, track, nonce)
    for variant, defense in (variants or {HEADLINE: Shifted(base)}).items():
        subject = Subject(
            base,
            data.from_factory(track.dataset),
            {NAME: defense},
            attacks_of(track, variant),
            ThreatModel(track.norm, track.eps),
            track.model,
        )
        evaluate(subject, track.settings(variant, nonce, until), out=folder / variant)
    return folder
