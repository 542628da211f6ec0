"""Cheats on the board, and the step of the commands that catches each of them."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dent import Dent, data
from dent.attacks import PGD, Attack, AttackResult, Defense
from dent.board.listing import read_board_row
from dent.board.metrics import reason_to_omit
from dent.board.pack import declared_of
from dent.board.page import to_page
from dent.board.row_checks import gain_by_id
from dent.board.submission import RowSubmission, write_submission
from dent.board.track_rules import attacks_of, check_defenses, departures
from dent.board.tracks import HEADLINE, VIEWS, Track
from dent.config import ViewsConfig
from dent.defenses import registry
from dent.errors import ConfigError
from dent.evaluation import Subject, describe, load_run
from dent.evaluation.engine import adversarial
from dent.evaluation.records.spec import STATIC, EvaluationSpec
from dent.threat import ThreatModel
from tests.attacks.known_defenses import Identity
from tests.board.conftest import Put
from tests.board.rows import NAME, make_row
from tests.board.toys import HERE, leaky, model, shifted, toy, tuned
from tests.cli.here import Ran, dent

SAME, TUNED, LEAKY, COUNTING, SABOTAGE, LAZY = (
    f"{HERE}:{name}" for name in ("same", "tuned", "leaky", "counting", "sabotage", "lazy")
)
ONE_BATCH = toy(half=2, batch_size=4, fixed="0-1")
BROKEN = toy(eps="24/255")
"""A toy track on which attacks break every sample of the base model."""
CPU = ("--device", "cpu")
FIELDS = (
    *("--name", "it", "--contact", "me@example.org", "--license", "MIT", "--evaluated-by", "me"),
    *("--repository", "https://example.org/code", "--commit", "a" * 40),
)


def submit(row: Path, *more: str) -> Ran:
    return dent("board", "submit", str(row), *FIELDS, *CPU, *more)


def check(row: Path, *more: str) -> dict[str, Any]:
    """Check a row as a maintainer does, and return the outcome with its exit status."""
    ran = dent("board", "check", str(row), *CPU, "--allow-code", "--json", *more)
    assert ran.out, ran.err
    return {"code": ran.code, **json.loads(ran.out)}


def failed(checked: dict[str, Any]) -> dict[str, list[str]]:
    """Return the problems of each check that failed."""
    return {c["name"]: c["problems"] for c in checked["checks"] if c["state"] == "failed"}


def submit_by_hand(folder: Path, factory: str) -> None:
    """Write a submission as somebody would whose row `dent board submit` refuses."""
    row = read_board_row(folder)
    submission = RowSubmission(
        name="it",
        track=row.track.name,
        factory=factory,
        repository="https://example.org/code",
        commit="a" * 40,
        contact="me",
        license="MIT",
        evaluated_by="me",
        identity=row.headline.result.identity,
        manifest=declared_of(folder),
    )
    write_submission(folder, submission)


def test_row_tuned_on_the_fixed_half_fails_at_submission_check_page_and_export(
    put: Put, tmp_path: Path
) -> None:
    """Its gain on the fixed half is real, so every check passes but the one of the halves."""
    put(BROKEN)
    row = make_row(tmp_path / "row", BROKEN, "1f", {HEADLINE: tuned(model())}, name=TUNED)
    gains = gain_by_id(load_run(row / HEADLINE))
    assert {gain for id_, gain in gains.items() if id_ in BROKEN.fixed_ids} == {1.0}
    assert {gain for id_, gain in gains.items() if id_ not in BROKEN.fixed_ids} == {0.0}
    refused = submit(row)
    assert refused.code == 1
    assert "was the defense made with the fixed half?" in refused.out
    assert not (row / "submission.json").exists()
    submit_by_hand(row, TUNED)
    checked = check(row, "--record", "us")
    assert (checked["code"], checked["status"]) == (1, "failed")
    assert list(failed(checked)) == ["halves"]
    assert "+100.0 points on the fixed half and +0.0" in failed(checked)["halves"][0]
    assert not (row / "trust.json").exists()
    found = read_board_row(row)
    assert found.trust == "claimed"
    assert "was the defense made with the fixed half?" in to_page([found], tmp_path)
    assert "was the defense made with the fixed half?" in str(reason_to_omit(found))


def test_forged_weak_attacks_pass_all_checks_until_one_runs_again(
    put: Put, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attacks on the defense keep only natural images, and claim that nothing was fooled."""
    put(ONE_BATCH)
    honest = adversarial._attack_batch

    def forge(
        run: Any, unit: Any, batch: Any, defense: Defense, attack: Callable[..., AttackResult]
    ) -> Any:
        def weak(target: Defense, x: Tensor, y: Tensor) -> AttackResult:
            result = attack(target, x, y)
            nothing = torch.zeros_like(result.fooled)
            claims = dict.fromkeys(result.fooled_after, nothing)
            return replace(result, adversarial=x, fooled=nothing, fooled_after=claims)

        return honest(run, unit, batch, defense, attack if unit.defense == STATIC else weak)

    with monkeypatch.context() as patch:
        patch.setattr(adversarial, "_attack_batch", forge)
        make_row(tmp_path / "row", ONE_BATCH, "1f", {HEADLINE: shifted(model())}, "end")
    row = tmp_path / "row"
    assert submit(row).code == 0
    assert check(row)["says"] == "records verified, attacks not re-run"
    again = check(row, "--reattack", "1", "--reattack-nonce", "9", "--record", "us")
    assert (again["code"], again["status"]) == (1, "failed")
    assert list(failed(again)) == ["attacks"]
    assert f"/{NAME}/" in failed(again)["attacks"][0]
    assert "not the same when attacked again" in failed(again)["attacks"][0]
    assert read_board_row(row).trust == "claimed"


def run_on_toy(defense: str, folder: Path) -> Path:
    """Evaluate a defense on the toy track by the command line, and return its row."""
    row = folder / "row"
    asked = ("board", "run", "toy-v1", "--defense", defense, "--nonce", "1f", *CPU)
    assert dent(*asked, "--out", str(row)).code == 0
    return row


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_row(tmp_path_factory.mktemp("board") / "row", ONE_BATCH)


@pytest.fixture
def row(made: Path, put: Put, tmp_path: Path) -> Path:
    """Return a copy of the row that a test may change."""
    put(ONE_BATCH)
    return shutil.copytree(made, tmp_path / "row")


class Called(Identity):
    """A defense that says that it is a mean over views."""

    def describe(self) -> dict[str, str]:
        return {"name": "tte"}


def spec_on(
    track: Track, defense: Defense, attacks: Sequence[Attack] | None = None
) -> EvaluationSpec:
    """Describe an evaluation of one defense on the samples of a track."""
    if attacks is None:
        attacks = attacks_of(track, HEADLINE)
    threat = ThreatModel(track.norm, track.eps)
    dataset = data.from_factory(track.dataset)
    subject = Subject(model(), dataset, {"it": defense}, attacks, threat, track.model)
    return describe(subject, track.settings(HEADLINE))


def test_defense_that_is_only_called_a_mean_over_views_is_no_views_run() -> None:
    """A weak baseline would make the difference to the views look large."""
    track = toy()
    check_defenses(track, VIEWS, spec_on(track, registry.make("tte", model())))
    other = Dent(model(), replace(registry.CONFIGS["tte"], views=ViewsConfig(count=2)))
    for defense in (Called(model()), other):
        with pytest.raises(ConfigError, match="the variant views takes a mean over views"):
            check_defenses(track, VIEWS, spec_on(track, defense))


def test_attacks_in_another_order_depart_from_the_track() -> None:
    """A run that stops early would stop after more attacks, if the weakest ones came first."""
    track = toy()
    attacks = attacks_of(track, HEADLINE)
    for defense in (Identity(model()), registry.make("tte", model())):
        assert departures(track, HEADLINE, None, spec_on(track, defense)) == ()
        (said,) = departures(track, HEADLINE, None, spec_on(track, defense, attacks[::-1]))
        assert said.startswith("the order of the attacks: the run has ")


def test_submission_that_names_another_defense_than_its_run_is_refused(
    row: Path, tmp_path: Path
) -> None:
    (tmp_path / "fields.json").write_text(json.dumps({"factory": SAME}))
    refused = submit(row, "--from", str(tmp_path / "fields.json"))
    assert refused.code == 1
    said = f"the submission names the defense {SAME}, the headline run evaluates {NAME}"
    assert said in refused.out
    submit_by_hand(row, SAME)
    assert failed(check(row)) == {"defense": [said]}
    assert said in to_page([read_board_row(row)], tmp_path)


def test_run_under_the_name_of_another_defense_is_refused(put: Put, tmp_path: Path) -> None:
    """The records name code that is in the repository, but other code made their predictions."""
    put(ONE_BATCH)
    row = make_row(tmp_path / "row", ONE_BATCH, "1f", {HEADLINE: shifted(model())}, name=SAME)
    assert submit(row).code == 1
    submit_by_hand(row, SAME)
    checked = check(row)
    assert checked["code"] == 1
    assert "subject" in failed(checked) or "served" in failed(checked), checked


def test_row_with_a_name_that_reads_like_a_known_defense_is_refused(
    row: Path, tmp_path: Path
) -> None:
    """Its first e is Cyrillic."""
    refused = submit(row, "--name", "d\u0435nt+")
    assert refused.code == 1
    assert "reads like dent+, a defense of torch-dent, and its factory is" in refused.out
    submit_by_hand(row, NAME)
    fields = json.loads((row / "submission.json").read_text())
    (row / "submission.json").write_text(json.dumps(fields | {"name": "Dent+"}))
    assert list(failed(check(row, "--records-only"))) == ["submission"]
    assert "reads like dent+" in to_page([read_board_row(row)], tmp_path)


def test_defense_renamed_after_its_check_is_claimed_again(row: Path, tmp_path: Path) -> None:
    assert submit(row).code == 0
    assert check(row, "--record", "us")["code"] == 0
    assert read_board_row(row).trust == "records verified"
    assert submit(row, "--name", "a new idea").code == 0
    found = read_board_row(row)
    assert (found.name, found.trust) == ("a new idea", "claimed")
    assert "the submission has changed since the 1 check" in to_page([found], tmp_path)


def test_state_within_a_defense_is_reported_and_prevents_a_gain(put: Put, tmp_path: Path) -> None:
    """Its records are right, so they are verified, and the suite says what they are worth."""
    put(ONE_BATCH)
    row = make_row(tmp_path / "row", ONE_BATCH, "1f", {HEADLINE: leaky(model())}, name=LEAKY)
    raised = {each.name for each in load_run(row / HEADLINE).result.defenses[LEAKY].raised}
    assert "carries state" in raised
    assert submit(row).code == 0
    assert check(row)["status"] == "verified"
    assert read_board_row(row).ruling != "robust gain"


def test_state_outside_a_defense_is_found_when_its_batches_are_submitted_again(
    put: Put, tmp_path: Path
) -> None:
    """A copy of the defense is not fresh if the state is elsewhere in the process."""
    put(ONE_BATCH)
    row = run_on_toy(COUNTING, tmp_path)
    assert submit(row).code == 1
    submit_by_hand(row, COUNTING)
    checked = check(row)
    assert checked["code"] == 1
    assert {"served", "probes"} & failed(checked).keys()
    assert read_board_row(row).ruling != "robust gain"


def test_code_that_makes_the_base_model_worse_is_found_before_it_is_imported(
    put: Put, tmp_path: Path
) -> None:
    """It does so in every process, and nothing that runs after it can tell."""
    put(ONE_BATCH)
    row = run_on_toy(SABOTAGE, tmp_path)
    difference = read_board_row(row).difference
    assert difference is not None
    assert difference.value is not None
    assert difference.value > 0
    submit_by_hand(row, SABOTAGE)
    checked = check(row, "--record", "us")
    assert (checked["code"], list(failed(checked))) == (1, ["base model"])
    assert "its logits are no near tie" in str(checked) or "is served" in str(checked)
    assert read_board_row(row).trust == "claimed"


def test_code_that_replaces_an_attack_in_the_process_of_the_check_is_found(
    put: Put, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PGD, "run", PGD.run)  # put back what the code replaces
    put(ONE_BATCH)
    row = make_row(tmp_path / "row", ONE_BATCH, "1f", {HEADLINE: Identity(model())}, name=LAZY)
    submit_by_hand(row, LAZY)
    checked = check(row, "--record", "us")
    assert checked["code"] == 1
    said = "the code of the row has replaced dent.attacks.pgd.PGD.run in the process of the checks"
    assert failed(checked)["process"] == [said]
    assert not (row / "trust.json").exists()
