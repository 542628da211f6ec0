"""Test how rows are submitted and checked, and that manipulated rows are detected."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dent.board.listing import read_board_row
from dent.board.metrics import reason_to_omit
from dent.board.page import to_page
from dent.board.row_checks import above, checks_of
from dent.board.row_folder import begin
from dent.board.submission import RowSubmission, reads_like, submission_of
from dent.board.track_rules import attacks_of
from dent.board.tracks import HEADLINE
from dent.board.verification import Submitted, VerifyOptions, check, conclude
from dent.board.verification import submit as submit_row
from dent.data import from_factory
from dent.defenses import make
from dent.errors import ConfigError
from dent.evaluation import Subject, Verification, challenge, evaluate
from dent.evaluation.records.journal import CHALLENGES, JOURNAL
from dent.evaluation.verification.outcome import Check
from dent.storage.canonical import canonical, digest
from dent.threat import ThreatModel
from tests.board.conftest import Put
from tests.board.rows import NAME, make_row
from tests.board.toys import model, shifted, toy
from tests.cli.here import Ran, dent
from tools.json_schema import texts

SMALL = toy(half=4, batch_size=4, fixed="0-3")
ROOT = Path(__file__).parents[2]
FIELDS = (
    *("--name", "shifted", "--contact", "me@example.org", "--license", "MIT"),
    *("--repository", "https://example.org/code", "--commit", "a" * 40),
    *("--evaluated-by", "me"),
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_row(tmp_path_factory.mktemp("board") / "row", SMALL)


@pytest.fixture
def row(made: Path, put: Put, tmp_path: Path) -> Path:
    put(SMALL)
    shutil.copytree(made, tmp_path / "row")
    return tmp_path / "row"


def submit(row: Path, *more: str) -> Ran:
    return dent("board", "submit", str(row), *FIELDS, "--records-only", *more)


def states(ran: Ran) -> dict[str, str]:
    return {check["name"]: check["state"] for check in json.loads(ran.out)["checks"]}


def test_submitted_row_is_packed_checked_re_attacked_and_trusted(row: Path, tmp_path: Path) -> None:
    ran = dent("board", "submit", str(row), *FIELDS, "--device", "cpu")
    assert ran.code == 0, ran.err + ran.out
    assert "A row is void if its submitter chose its nonce." in ran.out
    assert (tmp_path / "row.tar.gz").exists()
    assert (tmp_path / "row.images.tar").exists()
    again = (
        "board",
        "check",
        str(row),
        "--reattack",
        "1",
        "--reattack-nonce",
        "9",
        "--device",
        "cpu",
    )
    assert "--allow-code" in dent(*again).err
    checked = dent(*again, "--allow-code", "--record", "us", "--json")
    assert checked.code == 0, checked.out
    assert set(states(checked).values()) == {"passed"}
    assert {"submission", "manifest", "track", "defense", "halves", "served", "attacks"} <= set(
        states(checked)
    )
    found = read_board_row(row)
    assert found.name == "shifted"
    assert found.trust.startswith("re-attacked (1 of ")
    (entry,) = found.checks
    assert found.submission is not None
    assert entry.manifest == found.submission.manifest
    static, defense = entry.by_defense["static"], entry.by_defense[NAME]
    assert (static.units, defense.units, static.of + defense.of) == (
        (0, 1, entry.of) if defense.of else (1, 0, entry.of)
    )
    edit(row / HEADLINE / "run.json", lambda run: run.update(status="failed"))
    assert read_board_row(row).trust == "claimed"


def test_row_is_submitted_and_checked_in_python(
    row: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = (name.strip("-").replace("-", "_") for name in FIELDS[::2])
    fields = dict(zip(names, FIELDS[1::2], strict=True))
    options = VerifyOptions(records_only=True)
    submitted = submit_row(row, None, fields, None, options)
    assert isinstance(submitted, Submitted)
    assert submitted.packed.records == row.with_name("row.tar.gz")
    assert submitted.submission == read_board_row(row).submission
    checked = check(row, options=options)
    assert (checked.status, checked.verification.status) == ("incomplete", "incomplete")
    assert {check.state for check in checked.checks} == {"passed", "not-run"}
    assert capsys.readouterr() == ("", "")


def test_recorded_check_lists_the_challenges_that_it_covered(row: Path, tmp_path: Path) -> None:
    assert submit(row).code == 0
    base = model()
    subject = Subject(
        base,
        from_factory(SMALL.dataset),
        {NAME: shifted(base)},
        attacks_of(SMALL, HEADLINE),
        ThreatModel(SMALL.norm, SMALL.eps),
        SMALL.model,
    )
    images = torch.stack([subject.dataset.batch([id_])[0][0] for id_ in SMALL.ids("1f")])
    np.save(tmp_path / "images.npy", images.numpy())
    challenge(row / HEADLINE, subject, tmp_path / "images.npy", by="Ada")
    assert read_board_row(row).challenged_by == ("Ada",)
    checked = dent("board", "check", str(row), "--device", "cpu", "--allow-code", "--record", "us")
    assert checked.code == 0, checked.out
    found = read_board_row(row)
    line = json.loads((row / HEADLINE / CHALLENGES).read_text())
    assert [entry.challenges for entry in found.checks] == [{HEADLINE: (line["sha256"],)}]
    assert found.challenged_by == ()
    assert [entry.by for entry in found.headline.defense.challenges] == ["Ada"]


def test_source_of_the_nonce_is_recorded_and_shown(row: Path, tmp_path: Path) -> None:
    assert submit(row).code == 0
    asked = ("board", "check", str(row), "--device", "cpu", "--allow-code")
    assert dent(*asked, "--record", "us").code == 0
    assert "source of the nonce not stated" in to_page([read_board_row(row)], tmp_path)
    source = ("--nonce-source", "block 900,000 of a public chain")
    assert "--nonce-source is recorded with a check" in dent(*asked, *source).err
    assert "expected a text" in dent(*asked, "--record", "us", "--nonce-source", " ").err
    assert dent(*asked, "--record", "us", *source).code == 0
    found = read_board_row(row)
    assert found.to_json()["nonce_source"] == "block 900,000 of a public chain, by us"
    page = to_page([found], tmp_path)
    assert f"{found.nonce}: block 900,000 of a public chain, by us" in page
    assert "not stated" not in page
    assert to_page([found, found], tmp_path).count("a public chain") == 1  # once, for all rows


def test_nonce_of_the_row_draws_no_attacks_to_run_again(row: Path) -> None:
    assert submit(row).code == 0
    asked = ("board", "check", str(row), "--device", "cpu", "--allow-code", "--reattack", "1")
    refused = dent(*asked, "--reattack-nonce", "1f")
    assert refused.code == 2
    assert "--reattack-nonce 1f is the nonce that drew the samples of the row" in refused.err
    assert dent(*asked, "--reattack-nonce", "2f").code == 0


def test_claim_has_no_nonce_whose_source_could_be_recorded(put: Put, tmp_path: Path) -> None:
    put(SMALL)
    row = make_row(tmp_path / "row", SMALL, None)
    asked = ("board", "check", str(row), "--records-only", "--record", "us")
    assert "has no nonce: leave out --nonce-source" in dent(*asked, "--nonce-source", "x").err


def test_claim_on_the_fixed_half_is_never_verified_or_exported(put: Put, tmp_path: Path) -> None:
    put(SMALL)
    row = make_row(tmp_path / "rows" / "row", SMALL, None)
    submitted = dent("board", "submit", str(row), *FIELDS, "--device", "cpu")
    assert submitted.code == 0, submitted.err + submitted.out
    asked = ("board", "check", str(row), "--device", "cpu", "--allow-code", "--record", "us")
    checked = dent(*asked, "--json")
    assert checked.code == 3, checked.out + checked.err
    assert json.loads(checked.out)["status"] == "incomplete"
    assert {name: state for name, state in states(checked).items() if state != "passed"} == {
        "halves": "not-run"
    }
    assert not (row / "trust.json").exists()
    found = read_board_row(row)
    assert found.trust == "claimed"
    assert "halves: there is only the fixed half" in str(reason_to_omit(found))
    exported = dent(
        *("board", "export", str(row.parent), "--to", "every-eval-ever"),
        *("--out", str(tmp_path / "exported"), "--json"),
    )
    assert json.loads(exported.out)["files"] == []


def test_archive_can_be_checked_without_and_with_its_separate_images(
    row: Path, tmp_path: Path
) -> None:
    assert submit(row).code == 0
    place = tmp_path / "inbox"
    place.mkdir()
    shutil.copy(row / "submission.json", place)
    shutil.copy(tmp_path / "row.tar.gz", place / "it.tar.gz")
    asked = ("board", "check", str(place / "it.tar.gz"), "--device", "cpu", "--allow-code")
    bare = dent(*asked, "--json")
    assert bare.code == 3, bare.out + bare.err
    assert states(bare)["served"] == "not-run"
    whole = dent(*asked, "--images-archive", str(tmp_path / "row.images.tar"), "--json")
    assert whole.code == 0, whole.out + whole.err
    refused = dent(*asked, "--reattack", "1", "--reattack-nonce", "1")
    assert "--reattack takes the images of the run" in refused.err


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_downloaded_files_are_compared_with_the_submission(row: Path, tmp_path: Path) -> None:
    told = submit(row).out
    images = tmp_path / "row.images.tar"
    assert f"its URL and SHA-256 ({sha256(images)}) to" in told.replace("\n", " ")
    lock, one, two = (tmp_path / name for name in ("lock.txt", "one.safetensors", "two.pt"))
    for path in (lock, one, two):
        path.write_text(path.name)
    named = {
        path.name: {"url": "https://example.org/x", "sha256": sha256(path)}
        for path in (images, lock, one, two)
    }
    weights = [named[one.name], named[two.name]]
    edit(
        row / "submission.json",
        lambda values: values.update(
            images=named[images.name], lock=named[lock.name], weights=weights
        ),
    )
    asked = ("board", "check", str(row), "--records-only", "--json")
    both = ("--weights-file", str(one), "--weights-file", str(two))
    right = dent(*asked, "--images-archive", str(images), "--lock-file", str(lock), *both)
    assert right.code == 3, right.out + right.err  # nothing is wrong, and no batch was submitted
    assert (states(right)["lock"], states(right)["weights"]) == ("passed", "passed")
    assert {"lock", "weights"}.isdisjoint(states(dent(*asked)))

    swapped = dent(*asked, "--lock-file", str(one), "--weights-file", str(two))
    assert swapped.code == 1
    problems = {each["name"]: each["problems"] for each in json.loads(swapped.out)["checks"]}
    unnamed = f"{one} has SHA-256 {sha256(one)}, which the submission does not name"
    assert problems["lock"] == [
        unnamed,
        (f"https://example.org/x with SHA-256 {sha256(lock)} is not among the given files"),
    ]
    assert problems["weights"] == [
        f"https://example.org/x with SHA-256 {sha256(one)} is not among the given files"
    ]
    edit(row / "submission.json", lambda values: values.update(images=named[lock.name]))
    other = dent(*asked, "--images-archive", str(images))
    assert other.code == 2
    assert f"the submission names images with {sha256(lock)}" in other.err
    assert "gone.pt is missing" in dent(*asked, "--weights-file", "gone.pt").err


def test_missing_submission_fields_are_named_and_given_fields_are_kept(row: Path) -> None:
    bare = dent("board", "submit", str(row), "--records-only")
    assert bare.code == 2
    assert all(name in bare.err for name in ("name", "contact", "license", "evaluated_by"))
    assert not (row / "submission.json").exists()
    assert submit(row).code == 0
    changed = dent("board", "submit", str(row), "--records-only", "--name", "other", "--json")
    assert changed.code == 0, changed.err
    told = json.loads(changed.out)
    assert (told["name"], told["contact"]) == ("other", "me@example.org")
    assert told["factory"] == NAME


def test_factory_of_a_json_file_is_its_path_in_the_repository(
    put: Put, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(SMALL)
    monkeypatch.chdir(tmp_path)
    mine, other = tmp_path / "configurations" / "mine.json", tmp_path / "other" / "mine.json"
    for path, lr in ((mine, 0.002), (other, 0.003)):
        path.parent.mkdir()
        path.write_text(json.dumps({"steps": 0, "lr": lr}))
    defense = make(str(mine), model())
    row = make_row(tmp_path / "row", SMALL, None, {HEADLINE: defense}, name="mine")
    bare = submit(row)
    assert bare.code == 2
    assert "the factory 'mine' makes no defense" in bare.err
    assert "--defense configurations/mine.json" in bare.err
    for path, said in (
        (str(mine), "makes no defense"),
        ("../row/mine.json", "makes no defense"),
        ("mine.json", "There is no configuration file mine.json"),
        ("other/mine.json", "other/mine.json has other settings than the defense of the headline"),
    ):
        assert said in submit(row, "--defense", path).err
    assert not (row / "submission.json").exists()
    told = submit(row, "--defense", "configurations/mine.json", "--json")
    assert told.code == 0, told.err
    assert json.loads(told.out)["factory"] == "configurations/mine.json"
    assert failed(row).keys() == {"halves"}  # it is a claim
    assert submit(row).code == 0  # it keeps its own factory
    make(json.loads(told.out)["factory"], model())


def test_unfinished_run_is_refused_before_missing_fields_are_named(row: Path) -> None:
    journal = row / HEADLINE / "journal.jsonl"
    journal.write_text("".join(journal.read_text().splitlines(keepends=True)[:3]))
    ran = dent("board", "submit", str(row), "--records-only")
    assert ran.code == 2
    assert "the headline run is not finished (" in ran.err
    assert f"`dent board run toy-v1 --defense {NAME}" in ran.err
    assert "evaluated_by" not in ran.err


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"repository": "javascript:alert(1)"}, "repository"),
        ({"commit": "main"}, "commit"),
        ({"commit": "0123abc"}, "commit: expected the full hash of 40 .*`git rev-parse HEAD`"),
        ({"repository": None}, "is code of your own: give the repository and the commit"),
        ({"paper": "https://a b"}, "paper"),
        ({"size": 3}, "size"),
        ({"repository": "https://github.com@example.org/x"}, "repository: expected https://HOST"),
        ({"repository": "http://[::1"}, "repository: invalid IPv6"),
        ({"paper": "https://example.org/\u202egpj.exe"}, "paper"),
        ({"name": " "}, "name"),
        ({"name": "dent+\u200b"}, r"name: it contains U\+200B, which is not visible"),
        ({"name": "\u3164"}, r"name: it contains U\+3164"),
        ({"contact": "\x1b[31mme"}, r"contact: it contains U\+001B"),
        ({"license": "MIT" + 3 * "\u0338"}, "license: it has more than 2 marks on a letter"),
        ({"known_attacks": [{"title": "x"}]}, "known_attacks.0.url"),
    ],
)
def test_invalid_submission_fields_are_refused(values: dict[str, Any], said: str) -> None:
    fields = {
        "name": "n",
        "track": "toy-v1",
        "factory": "package.module:factory",
        "repository": "https://example.org/code",
        "commit": "a" * 40,
        "contact": "me",
        "license": "MIT",
        "evaluated_by": "me",
    }
    assert isinstance(submission_of(fields, "it"), RowSubmission)
    with pytest.raises(ConfigError, match=said):
        submission_of(fields | values, "it")


@pytest.mark.parametrize(
    "name", ["Dent +", "d\u0435nt+", "\uff24\uff25\uff2e\uff34+", "D\u00c9NT+", "dent\u2010+"]
)
def test_names_that_readers_take_for_one_another_read_alike(name: str) -> None:
    assert reads_like(name) == reads_like("dent+")


def test_names_in_other_scripts_read_as_themselves() -> None:
    names = ("dent", "dent+", "dent, 10 steps", "\u0394-dent", "\u0442\u0435\u043d\u0442", "ET3")
    assert len({reads_like(name) for name in names}) == len(names)


def test_json_schema_in_the_docs_matches_the_code() -> None:
    name = "submission.schema.json"
    assert (ROOT / "docs" / "reference" / name).read_text() == texts()[name], (
        "run `python tools/json_schema.py`"
    )


def forge(run: Path, *, right: bool) -> None:
    """Replace the served predictions of the defense, and recompute the checksums."""
    batches = json.loads((run / "plan.json").read_text())["batches"]
    lines = []
    for line in (run / JOURNAL).read_text().splitlines():
        record = json.loads(line)["record"]
        if record["defense"] == NAME and "served" in record:
            labels = batches[record["batch"]]["labels"]
            record["served"] = [label if right else (label + 1) % 4 for label in labels]
        lines.append(canonical({"record": record, "sha256": digest(record)}))
    (run / JOURNAL).write_text("\n".join(lines) + "\n")


def test_forged_variant_is_detected_on_submission_and_by_a_check(put: Put, tmp_path: Path) -> None:
    put(SMALL)
    base = model()
    runs = {HEADLINE: shifted(base), "by-class": shifted(base)}
    row = make_row(tmp_path / "row", SMALL, "1f", runs)
    honest = dent("board", "submit", str(row), *FIELDS, "--device", "cpu")
    assert honest.code == 0, honest.err + honest.out
    whole = ("board", "check", str(row), "--device", "cpu", "--allow-code", "--json")
    assert "by-class: served" in states(dent(*whole))
    forge(row / "by-class", right=True)
    again = dent("board", "submit", str(row), *FIELDS, "--device", "cpu")
    assert again.code == 1
    found = dent(*whole)
    assert found.code == 1
    assert states(found)["by-class: served"] == "failed"
    assert states(found)["served"] == "passed"


def test_row_is_as_checked_as_its_least_checked_run() -> None:
    passed, not_run = (
        Verification(
            status=status,
            identity=None,
            checks=(Check(name="served", state=state, looked_at=1, problems=()),),
        )
        for status, state in (("verified", "passed"), ("incomplete", "not-run"))
    )
    assert conclude((), {HEADLINE: passed, "public": passed}).says.startswith("records verified")
    found = conclude((), {HEADLINE: passed, "public": not_run})
    assert (found.status, found.says) == ("incomplete", "incomplete")
    assert [check.name for check in found.checks] == ["served", "public: served"]


def test_views_run_of_another_defense_is_detected(row: Path) -> None:
    shutil.copytree(row / HEADLINE, row / "views")
    assert "the variant views takes a mean over views" in failed(row)["defense"][0]


def test_row_without_the_static_model_is_detected(put: Put, tmp_path: Path) -> None:
    put(SMALL)
    base = model()
    begin(tmp_path / "row", SMALL, "1f")
    subject = Subject(
        base,
        from_factory(SMALL.dataset),
        {NAME: shifted(base)},
        attacks_of(SMALL, HEADLINE)[:1],
        ThreatModel(SMALL.norm, SMALL.eps),
        SMALL.model,
    )
    alone = SMALL.settings(HEADLINE, "1f").model_copy(update={"static": False, "transfer": False})
    evaluate(subject, alone, out=tmp_path / "row" / HEADLINE)
    assert "headline: there is no static model" in failed(tmp_path / "row")["defense"][0]


def edit(path: Path, change: Any) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def failed(row: Path) -> dict[str, list[str]]:
    return {c.name: list(c.problems) for c in checks_of(read_board_row(row)) if c.problems}


def test_records_changed_after_the_submission_are_detected(row: Path) -> None:
    assert submit(row).code == 0
    assert failed(row) == {}
    edit(row / HEADLINE / "run.json", lambda run: run.update(status="failed"))
    assert list(failed(row)) == ["manifest"]


def test_row_that_states_another_nonce_than_its_run_used_is_detected(row: Path) -> None:
    """A submitter who tries nonces for an easy half has to state one that was not used."""
    edit(row / "row.json", lambda values: values.update(nonce="2f"))
    assert "samples: the run has 8" in failed(row)["track"][0]
    assert submit(row).code == 1
    refused = submit(row, "--json")
    assert (refused.code, states(refused)["track"]) == (1, "failed")
    assert not (row / "submission.json").exists()


def test_submission_that_names_another_defense_or_run_is_detected(row: Path) -> None:
    assert submit(row).code == 0
    edit(row / "submission.json", lambda values: values.update(factory="dent+"))
    assert "the submission names the defense dent+" in failed(row)["defense"][0]
    edit(row / "submission.json", lambda values: values.update(factory=NAME, identity="0" * 64))
    assert "the headline run is" in failed(row)["submission"][0]


def test_headline_run_copied_as_another_variant_is_detected(row: Path) -> None:
    shutil.copytree(row / HEADLINE, row / "by-class")
    found = failed(row)["track"]
    assert found == ["by-class: order: the track says by-class, the run has dataset"]


def test_check_rejects_a_journal_with_an_edited_attack_record(row: Path) -> None:
    assert submit(row).code == 0
    journal = row / HEADLINE / "journal.jsonl"
    journal.write_text(journal.read_text().replace('"kind":"attack"', '"kind":"natural"', 1))
    ran = dent("board", "check", str(row), "--records-only", "--json")
    assert ran.code in (1, 2)


def test_p_value_is_small_only_if_gains_are_higher_on_the_fixed_half() -> None:
    tuned, honest = [1.0] * 40 + [0.0] * 472, [1.0] * 12 + [-1.0] * 10 + [0.0] * 490
    assert (above(tuned, honest) or 1) < 1e-3
    assert (above(honest, honest) or 0) > 0.1
    assert (above(honest, tuned) or 0) > 0.9
    assert above([0.0] * 4, [0.0] * 4) == 1.0
    assert above([1.0], [0.0]) is None
