"""Walk the paths of docs/board.md: a newcomer's on the practice track, and from claim to row."""

import hashlib
import json
import re
import shlex
import shutil
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from dent import models
from dent.board.listing import list_rows, read_board_row
from dent.board.metrics import reason_to_omit
from dent.board.tracks import NOT_OF_THE_BOARD, Track, track
from dent.data.sample import load_sample
from dent.models.weights import weights_digest
from tests.board.conftest import Put
from tests.board.rows import make_row
from tests.board.toys import HERE, toy
from tests.cli.here import Ran, dent

DOCS = Path(__file__).parents[2] / "docs"
CPU = ("--device", "cpu")
FIELDS = (
    *("--name", "shifted", "--contact", "me@example.org", "--license", "MIT"),
    *("--repository", "https://example.org/code", "--commit", "a" * 40, "--evaluated-by", "me"),
)
ONE_BATCH = toy(half=2, batch_size=4, fixed="0-1")


def mirror() -> str:
    """Return `mine.py` of docs/board.md, with the tutorial's class and the lines above it."""
    page = (DOCS / "tutorials" / "bring-your-own.md").read_text()
    (block,) = re.findall(r"```python\n((?:(?!```).)*class Mirror.*?)```", page, re.DOTALL)
    section = _section()
    assert "Save its code block as\n`mine.py`, below the lines" in section
    above = [
        line for line in ("import torch", "from torch import Tensor") if f"`{line}`" in section
    ]
    return "\n".join([*above, block])


def _section() -> str:
    return (DOCS / "board.md").read_text().split("## Try it first")[1].split("\n## ")[0]


def walk() -> Iterator[tuple[str, ...]]:
    """Yield the commands of the section `Try it first`, but the one for other tracks."""
    for block in re.findall(r"```\n(.*?)```", _section(), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line)
            assert words[0] == "dent"
            if words[1] == "board":
                yield tuple(words[1:])


@pytest.fixture
def newcomer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """An empty folder with the tutorial's defense, which is the current one."""
    (tmp_path / "mine.py").write_text(mirror())
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("mine", None)


def take(folder: Path) -> dict[str, Ran]:
    """Run the commands of the section, and assert what the page says about them."""
    ran: dict[str, Ran] = {}
    for words in walk():
        device = () if words[1] == "page" else CPU
        ran[" ".join(words[1:3])] = last = dent(*words, *device)
        is_claim = words[1:3] == ("check", "runs/mine")
        assert last.code == (3 if is_claim else 0), (words, last.out, last.err)
    assert len(ran) == 6  # both runs have the same key
    claim, row = (read_board_row(folder / "runs" / name) for name in ("mine", "mine-row"))
    assert (claim.name, claim.nonce, claim.trust) == ("Mirror", None, "claimed")
    assert (row.name, row.nonce) == ("Mirror", "any text")
    assert row.trust.startswith("re-attacked (")
    assert row.submission is not None
    assert (row.submission.evaluated_by, row.submission.contact) == (
        "A maintainer",
        "me@example.org",
    )
    return ran


def test_practice_track_has_only_bundled_images_and_the_rules_of_the_board() -> None:
    practice, board = track("practice-v1"), track("cifar10-linf-8/255-v1")
    sample = load_sample()
    labels = dict(zip(sample.sample_ids, sample.labels.tolist(), strict=True))
    assert practice.digest == sample.digest
    assert practice.weights == weights_digest(models.load(practice.model)) == board.weights
    same = {"model", "norm", "eps", "suite", "budget", "variants", "seed", "split"}
    assert practice.model_dump(include=same) == board.model_dump(include=same)
    everything = {*practice.fixed_ids, *practice.ids("a")[32:], *practice.ids("b")[32:]}
    assert (len(practice.fixed_ids), len(practice.ids("a")), len(practice.ids("b"))) == (32, 64, 64)
    assert everything <= labels.keys()
    assert max(everything) < 9488
    classes = Counter(labels[id_] for id_ in practice.fixed_ids)
    assert set(classes.values()) <= {3, 4}


def test_only_the_practice_track_is_marked_as_not_part_of_the_board() -> None:
    listed = json.loads(dent("board", "tracks", "--json").out)
    assert [each["name"] for each in listed if each["practice"]] == ["practice-v1"]
    shown = dent("board", "tracks").out
    assert shown.count(NOT_OF_THE_BOARD.capitalize()) == 1
    marked = "[for practice](#try-it-first): its rows are not part of the board"
    assert marked in (DOCS / "board.md").read_text()


def test_newcomer_takes_the_defense_of_the_tutorial_to_the_page(put: Put, newcomer: Path) -> None:
    """The commands are those of the page. Only the track has fewer images and a tiny model."""
    tiny = {
        **track("practice-v1").model_dump(exclude={"variants"}),
        **ONE_BATCH.model_dump(
            include={
                *("model", "weights", "dataset", "digest", "eps"),
                *("half", "batch_size", "fixed", "pool"),
            }
        ),
    }
    put(Track(**tiny))
    ran = take(newcomer)
    assert f"practice-v1 is {NOT_OF_THE_BOARD}" in ran["run practice-v1"].err
    assert "so open no pull request" in ran["submit runs/mine"].out
    assert "dent board submit runs/mine-row --from runs/mine/submission.json" in (
        ran["submit runs/mine"].out
    )
    assert "Open a pull request" not in "".join(each.out for each in ran.values())
    assert NOT_OF_THE_BOARD in ran["check runs/mine-row"].out
    page = (newcomer / "board.html").read_text()
    assert page.count(f"practice-v1 is {NOT_OF_THE_BOARD}") == 1
    assert page.count(f">{NOT_OF_THE_BOARD.capitalize()}<") == 2
    assert {reason_to_omit(row) for row in list_rows(newcomer / "runs")} == {NOT_OF_THE_BOARD}


@pytest.mark.slow
def test_newcomer_takes_the_defense_of_the_tutorial_to_the_page_at_full_size(
    newcomer: Path,
) -> None:
    take(newcomer)
    for row in list_rows(newcomer / "runs"):
        assert row.ruling == "no gain"
        assert row.headline.decided is not None
        assert row.headline.decided.after == 0  # the first transfer was enough, as the page says


def test_maintainer_makes_the_row_from_a_claim(put: Put, tmp_path: Path) -> None:
    put(ONE_BATCH)
    mine, rows = tmp_path / "runs" / "mine", tmp_path / "rows" / "mine"
    repository = tmp_path / "board" / "toy-v1" / "mine"
    run = ("board", "run", "toy-v1", "--defense", f"{HERE}:shifted", *CPU)
    # The submitter: the claim, with the URL of its images, becomes a pull request.
    assert dent(*run, "--out", str(mine)).code == 0
    submitted = dent("board", "submit", str(mine), *FIELDS, *CPU)
    assert submitted.code == 0, submitted.err
    assert "Open a pull request" in submitted.out
    add_images(mine)
    open_pull_request(mine, repository)
    assert dent("board", "check", str(repository), "--records-only").code == 3
    # The maintainer draws the nonce. The folder of the claim cannot become the row.
    reused = dent(*run, "--nonce", "1f", "--out", str(repository))
    assert reused.code == 2
    assert f"--from {repository}/submission.json`" in reused.err
    assert dent(*run, "--nonce", "1f", "--out", str(rows)).code == 0
    check = (
        "board",
        "check",
        str(rows),
        *CPU,
        "--allow-code",
        "--reattack",
        "1",
        "--reattack-nonce",
        "2f",
    )
    unsubmitted = dent(*check)
    assert unsubmitted.code == 1
    assert "from that of the claim: `dent board submit ROW --from CLAIM" in unsubmitted.out
    claimed = str(repository / "submission.json")
    taken = dent(
        *("board", "submit", str(rows), "--from", claimed, "--evaluated-by", "us"),
        "--records-only",
    )
    assert taken.code == 0, taken.err
    assert "Left out `images`: they are of other records" in taken.err
    assert "A row is void if its submitter chose its nonce." in taken.out
    source = ("--record", "us", "--nonce-source", "block 900,000 of a public chain")
    checked = dent(*check, *source)
    assert checked.code == 0, checked.out
    # The row takes the place of the claim, and its images are named.
    shutil.rmtree(repository)
    add_images(rows)
    open_pull_request(rows, repository)
    found = read_board_row(repository)
    assert found.submission is not None
    assert (found.submission.evaluated_by, found.submission.contact) == ("us", "me@example.org")
    assert found.trust.startswith("re-attacked (")
    archive = rows.with_name("mine.images.tar")
    anybody = (
        "board",
        "check",
        str(repository),
        *CPU,
        "--allow-code",
        "--images-archive",
        str(archive),
    )
    assert dent(*anybody, "--reattack", "1", "--reattack-nonce", "3f").code == 0
    other = mine.with_name("mine.images.tar")
    assert "the submission names images with" in dent(*anybody[:-1], str(other)).err
    page = tmp_path / "board.html"
    assert dent("board", "page", str(tmp_path / "board"), "-o", str(page)).code == 0
    assert "re-attacked (" in page.read_text()
    assert "1f: block 900,000 of a public chain, by us" in page.read_text()
    assert NOT_OF_THE_BOARD not in page.read_text()


def add_images(row: Path) -> None:
    """Add URL and SHA-256 of the archive of images to a submission, as its submitter does."""
    sha256 = hashlib.sha256(row.with_name(f"{row.name}.images.tar").read_bytes()).hexdigest()
    fields = json.loads((row / "submission.json").read_text())
    assert fields["images"] is None
    fields["images"] = {"url": "https://example.org/images.tar", "sha256": sha256}
    (row / "submission.json").write_text(json.dumps(fields))


def open_pull_request(row: Path, place: Path) -> None:
    """Put a row into a clone of the repository, as `dent board submit` says."""
    with tarfile.open(row.with_name(f"{row.name}.tar.gz")) as archive:
        archive.extractall(place, filter="data")
    for name in ("submission.json", "trust.json"):
        if (row / name).exists():
            shutil.copy(row / name, place)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_row(tmp_path_factory.mktemp("board") / "row", ONE_BATCH, None)


def test_images_of_the_same_records_are_kept_when_a_row_is_submitted_again(
    made: Path, put: Put, tmp_path: Path
) -> None:
    put(ONE_BATCH)
    row = tmp_path / "row"
    shutil.copytree(made, row)
    submit = ("board", "submit", str(row), *FIELDS, "--records-only")
    assert dent(*submit).code == 0
    add_images(row)
    assert "Left out" not in dent(*submit).err
    assert json.loads((row / "submission.json").read_text())["images"] is not None


def test_rows_have_the_order_of_the_tracks_with_practice_tracks_last(
    made: Path, put: Put, tmp_path: Path
) -> None:
    for name, is_practice in (("a-v1", True), ("c-v1", False), ("b-v1", False)):
        chosen = toy(name=name, practice=is_practice, half=2, batch_size=4, fixed="0-1")
        put(chosen)
        shutil.copytree(made, tmp_path / name)
        record = json.loads((tmp_path / name / "row.json").read_text())
        record |= {"track": name, "identity": chosen.identity}
        (tmp_path / name / "row.json").write_text(json.dumps(record))
    assert [row.track.name for row in list_rows(tmp_path)] == ["c-v1", "b-v1", "a-v1"]
