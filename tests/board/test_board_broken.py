"""Test, from records alone, that images from outside break a row with a robust gain."""

from pathlib import Path

import numpy as np

from dent.board.listing import by_digest, read_board_row
from dent.board.page import to_page
from dent.board.tracks import HEADLINE
from dent.board.trust import TrustEntry, add_trust
from dent.evaluation import load_run
from tests.board.conftest import Put
from tests.board.rows import make_row
from tests.board.toys import HERE, TRIGGER, images, model, toy, trapped
from tests.cli.here import dent

WHOLE = toy(half=12, batch_size=24, fixed="0-11", pool="12-23")
"""All images of the toy dataset, because fewer could not show a gain."""
FACTORY = f"{HERE}:trapped"
FIELDS = (
    *("--name", "trapped", "--contact", "me", "--license", "MIT", "--evaluated-by", "me"),
    *("--repository", "https://example.org/code", "--commit", "a" * 40),
)


def test_outside_images_turn_a_row_with_a_gain_into_a_broken_one(put: Put, tmp_path: Path) -> None:
    put(WHOLE)
    row = make_row(tmp_path / "row", WHOLE, "1f", {HEADLINE: trapped(model())}, name=FACTORY)
    submitted = dent("board", "submit", str(row), *FIELDS, "--records-only")
    assert submitted.code == 0, submitted.err + submitted.out
    gained = read_board_row(row)
    assert (gained.ruling, gained.had_gain, gained.broken_by) == ("robust gain", True, ())
    assert gained.to_json()["broken_by"] == []
    assert " on the fixed half, +" in to_page([gained], tmp_path)

    natural, _ = images().batch(WHOLE.ids("1f"))
    np.save(tmp_path / "triggered.npy", (natural + TRIGGER).numpy())
    challenged = dent(
        *("challenge", str(row / HEADLINE), "--images", str(tmp_path / "triggered.npy")),
        *("--by", "Eve", "--url", "https://example.org/eve", "--defense", FACTORY),
        *("--device", "cpu", "--allow-code"),
    )
    assert challenged.code == 0, challenged.err
    unchecked = read_board_row(row)
    assert (unchecked.ruling, unchecked.challenged_by) == ("robust gain", ("Eve",))

    assert gained.submission is not None
    assert gained.submission.identity is not None
    (record,) = load_run(row / HEADLINE).challenges
    entry = TrustEntry(  # what `dent board check --record` adds
        state="records verified",
        identity=gained.submission.identity,
        manifest=gained.submission.manifest,
        submission=gained.submission.digest,
        by="us",
        date="2026-01-02",
        challenges={HEADLINE: tuple(by_digest([record]))},
    )
    add_trust(row, entry)
    broken = read_board_row(row)
    assert (broken.ruling, broken.had_gain) == ("no gain", True)
    assert " on the fixed half, " not in to_page([broken], tmp_path)
    assert broken.trust == "records verified, broken by Eve"
    told = {"by": "Eve", "digest": record.digest, "url": "https://example.org/eve"}
    assert broken.to_json()["broken_by"] == [told]
    page = to_page([broken], tmp_path)
    assert f"<small>images of Eve: digest <code>{record.digest}</code></small>" in page
    assert '<a href="https://example.org/eve">page given by Eve</a>' in page
