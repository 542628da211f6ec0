"""Test that `dent board run` evaluates a defense with the settings of its track."""

import json
from pathlib import Path

import pytest

from dent.board.row_folder import read_row
from dent.board.tracks import track
from dent.cli import runner
from dent.cli.runner import RunPlacement
from dent.errors import DentError
from dent.evaluation import EvaluationResult, Settings, Subject, load_run, suite
from dent.evaluation.suites import named_suite
from tests.board.conftest import Put
from tests.board.toys import HERE, toy
from tests.cli.here import dent

RUN = ("board", "run", "toy-v1", "--device", "cpu")
SHIFTED = ("--defense", f"{HERE}:shifted")


@pytest.fixture(autouse=True)
def _toy_track(put: Put) -> None:
    """Add the toy track in every test."""


def test_run_without_a_nonce_uses_the_fixed_half_and_with_a_nonce_both_halves(
    put: Put, tmp_path: Path
) -> None:
    put(toy(half=4, batch_size=4, fixed="0-3"))
    for name, nonce in (("claim", ()), ("row", ("--nonce", "1f"))):
        ran = dent(*RUN, *SHIFTED, *nonce, "--out", str(tmp_path / name))
        assert ran.code == 0, ran.err
    claim, row = (load_run(tmp_path / name / "headline") for name in ("claim", "row"))
    ids = [[i for b in each.plan.batches for i in b.ids] for each in (claim, row)]
    assert ids[0] == list(range(4))
    assert ids[1] == list(track("toy-v1").ids("1f"))
    assert claim.plan.batches[0] == row.plan.batches[0]
    assert named_suite(row.run.spec) == ("dynamic", "small")
    assert row.run.spec.schedule == "by-attack"
    assert row.run.spec.threat.eps == toy().eps
    assert [each.name for each in row.run.spec.defenses] == ["static", f"{HERE}:shifted"]
    assert [read_row(tmp_path / name).nonce for name in ("claim", "row")] == [None, "1f"]
    assert row.result.defenses[f"{HERE}:shifted"].verdict is not None
    before = (tmp_path / "row" / "headline" / "journal.jsonl").read_bytes()
    assert dent(*RUN, *SHIFTED, "--nonce", "1f", "--out", str(tmp_path / "row")).code == 0
    assert (tmp_path / "row" / "headline" / "journal.jsonl").read_bytes() == before
    other = dent(*RUN, *SHIFTED, "--nonce", "2f", "--out", str(tmp_path / "row"))
    assert other.code == 2
    assert "nonce: the folder has '1f', this run has '2f'" in other.err


def test_each_variant_is_a_separate_run_in_the_folder_of_the_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: dict[str, Settings] = {}

    def run(
        subject: Subject, settings: Settings, out: Path, placement: RunPlacement
    ) -> EvaluationResult:
        del placement
        ran[out.relative_to(tmp_path).as_posix()] = settings
        assert [attack.name for attack in subject.attacks] == [
            attack.name for attack in suite(mixed=settings.mix is not None)
        ]
        raise DentError("this is enough")

    monkeypatch.setattr(runner, "run", run)
    for variant in toy().variants:
        defense = ("--defense", "tte") if variant == "views" else SHIFTED
        asked = (*RUN, *defense, "--variant", variant, "--out", str(tmp_path / "row"))
        assert "this is enough" in dent(*asked, "--nonce", "1f", "--to-the-end").err
    assert ran == {
        f"row/{variant}": toy().settings(variant, "1f", "end") for variant in toy().variants
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--variant", "mixed"), "no variant 'mixed' of toy-v1, only headline, by-class"),
        (("--variant", "views"), "the variant views takes a mean over views, such as tte"),
        (("--nonce", " "), "a nonce is a text of 1 to 200 characters"),
    ],
)
def test_invalid_variants_and_nonces_are_refused(
    arguments: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    ran = dent(*RUN, *SHIFTED, *arguments, "--out", str(tmp_path / "row"))
    assert ran.code == 2
    assert said in ran.err
    assert not (tmp_path / "row").exists()


def test_base_model_or_dataset_that_differs_from_the_track_is_refused(
    put: Put, tmp_path: Path
) -> None:
    for changes, said in (
        ({"model": f"{HERE}:other"}, "rows of other weights cannot be compared"),
        ({"digest": "0" * 64}, "rows on other images cannot be compared"),
    ):
        put(toy(**changes))
        ran = dent(*RUN, *SHIFTED, "--out", str(tmp_path / "row"))
        assert ran.code == 2
        assert said in ran.err
        assert not (tmp_path / "row").exists()


def test_output_folder_that_is_not_a_row_is_refused_and_unchanged(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    ran = dent(*RUN, *SHIFTED, "--out", str(tmp_path))
    assert ran.code == 2
    assert "contains files that are not part of a row of the board" in ran.err
    assert [each.name for each in tmp_path.iterdir()] == ["notes.txt"]


def test_tracks_are_listed_with_their_identity() -> None:
    listed = {each["name"]: each for each in json.loads(dent("board", "tracks", "--json").out)}
    assert listed["toy-v1"]["identity"] == toy().identity
    assert listed["toy-v1"]["fixed_ids"] == list(range(8))
    shown = dent("board", "tracks").out
    assert all(name in shown for name in listed)
    assert "the digest of the weights is not recorded yet" in shown
