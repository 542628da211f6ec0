"""Test how rows are read from their folders, compared with their track, trusted and listed."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dent.board.board_row import BoardRow
from dent.board.listing import list_rows, read_board_row
from dent.board.metrics import reason_to_omit
from dent.board.pack import declared_of
from dent.board.page import to_page
from dent.board.row_folder import begin, read_row, track_of
from dent.board.submission import RowSubmission, read_submission, write_submission
from dent.board.track_rules import departures
from dent.board.tracks import HEADLINE, VIEWS
from dent.board.trust import TrustEntry, add_trust
from dent.errors import ConfigError
from dent.evaluation import load_run, suite
from dent.evaluation.attack_specs import attack_spec
from dent.evaluation.records.journal import CHALLENGES, JOURNAL, line_of
from dent.evaluation.records.spec import STATIC
from dent.evaluation.results.intervals import tango
from dent.evaluation.results.result import Decision
from dent.evaluation.subject import threat_of
from dent.evaluation.suite_attacks import SuiteName
from dent.evaluation.verification.reattack import RerunCount
from dent.storage.canonical import canonical, digest
from dent.storage.errors import RecordError
from tests.board.conftest import Put
from tests.board.rows import NAME, add_challenge, forged_challenge, make_row, manifest_of
from tests.board.toys import model, same, shifted, toy
from tests.cli.here import dent
from tests.evaluation.subjects import Push
from tests.unlisted import deny

SMALL = toy(half=4, batch_size=4, fixed="0-3")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A row with a headline run, and a views run of a defense that does nothing."""
    folder = tmp_path_factory.mktemp("board") / "toy" / "shifted"
    base = model()
    return make_row(folder, SMALL, "1f", {HEADLINE: shifted(base), VIEWS: same(base)}, "end")


@pytest.fixture
def row(made: Path, put: Put) -> BoardRow:
    put(SMALL)
    return read_board_row(made)


def test_row_fields_match_its_records(row: BoardRow) -> None:
    defense = row.headline.result.defenses[NAME]
    assert row.headline.departures == ()
    assert row.name == NAME
    assert row.ruling == (defense.verdict.ruling if defense.verdict else None)
    assert row.difference == defense.difference
    assert row.suite == 3
    assert not row.stale
    assert row.trust == "claimed"
    assert row.decided_by in defense.worst.by


def test_row_of_an_older_suite_is_stale_on_the_page_and_in_the_listing(
    row: BoardRow, put: Put, tmp_path: Path
) -> None:
    older = toy(name="older-v1", half=4, batch_size=4, fixed="0-3", suite=1)
    put(older)
    folder = make_row(tmp_path / "board" / "older", older, None)
    stale = read_board_row(folder)
    assert (stale.suite, stale.stale, stale.headline.departures) == (1, True, ())
    page = tmp_path / "page.html"
    (listed,) = json.loads(dent("board", "page", str(folder.parent), "-o", str(page), "--json").out)
    assert (listed["suite"], listed["stale"]) == (1, True)
    note = "<small>stale: a newer suite is out</small>"
    assert note in page.read_text()
    assert note not in to_page([row], tmp_path)
    assert row.to_json()["stale"] is False


def test_difference_from_the_views_run_is_paired_by_sample(row: BoardRow) -> None:
    """The views run uses a defense that does nothing, so it has the result of the base model."""
    found = row.less_views
    assert found is not None
    assert row.difference is not None
    assert found.value == row.difference.value
    assert found.total == 8
    assert found.interval == tango(found.only_defended, found.only_static, found.total)
    assert replace(row, views=None).less_views is None


def test_run_that_stopped_early_is_not_compared_with_the_views_run(row: BoardRow) -> None:
    headline = row.headline
    stopped = headline.defense.model_copy(
        update={"decided": Decision(after=1, of=18, at_most=0.1, below=False)}
    )
    defenses = {**headline.result.defenses, NAME: stopped}
    result = headline.result.model_copy(update={"defenses": defenses})
    early = replace(row, headline=replace(headline, result=result))
    assert early.less_views is None
    assert early.stopped


def test_departures_name_each_setting_that_differs_from_the_track(row: BoardRow) -> None:
    spec = row.headline.result.spec
    assert departures(SMALL, HEADLINE, "1f", spec) == ()
    assert "samples: the run has 8, and" in departures(SMALL, HEADLINE, "2f", spec)[0]
    assert "samples: the run has 8, and 4 of the 4" in departures(SMALL, HEADLINE, None, spec)[0]
    assert departures(SMALL, "by-class", "1f", spec) == (
        "order: the track says by-class, the run has dataset",
    )
    others = {
        "the base model": spec.model_copy(
            update={"model": spec.model.model_copy(update={"name": "mine:weak"})}
        ),
        "the dataset": spec.model_copy(
            update={"dataset": spec.dataset.model_copy(update={"name": "mine:easy"})}
        ),
        "the content of the dataset": spec.model_copy(
            update={"dataset": spec.dataset.model_copy(update={"digest": "0" * 64})}
        ),
        "the static model": spec.model_copy(
            update={
                "defenses": tuple(
                    each.model_copy(update={"weights": "0" * 64}) if each.name == STATIC else each
                    for each in spec.defenses
                )
            }
        ),
        "eps": spec.model_copy(update={"threat": spec.threat.model_copy(update={"eps": "1/255"})}),
        "seed": spec.model_copy(update={"settings": spec.settings.model_copy(update={"seed": 1})}),
        "transfer": spec.model_copy(
            update={"settings": spec.settings.model_copy(update={"transfer": False})}
        ),
        "the suite": spec.model_copy(update={"attacks": spec.attacks[:3]}),
    }
    for what, changed in others.items():
        assert [each.partition(":")[0] for each in departures(SMALL, HEADLINE, "1f", changed)] == [
            what
        ]
    weights = spec.model_copy(update={"model": spec.model.model_copy(update={"weights": "0" * 64})})
    assert [each.partition(":")[0] for each in departures(SMALL, HEADLINE, "1f", weights)] == [
        "the weights of the base model",
        "the static model",
    ]
    to_the_end = spec.settings.model_copy(update={"until": "end"})
    assert departures(SMALL, HEADLINE, "1f", spec.model_copy(update={"settings": to_the_end})) == ()


@pytest.mark.parametrize("name", ["dynamic-1", "dynamic-2"])
def test_older_suite_than_the_one_of_the_track_is_a_departure(
    row: BoardRow, name: SuiteName
) -> None:
    spec = row.headline.result.spec
    threat = threat_of(spec.threat)
    older = spec.model_copy(
        update={"attacks": tuple(attack_spec(attack, threat) for attack in suite(name, "full"))}
    )
    version = name[-1]
    assert departures(SMALL, HEADLINE, "1f", older) == (
        f"the suite: the track says version 3, small, the run has version {version}",
    )


def test_larger_budget_than_the_one_of_the_track_is_a_departure(row: BoardRow) -> None:
    spec = row.headline.result.spec
    full = tuple(attack_spec(attack, threat_of(spec.threat)) for attack in suite(budget="full"))
    assert departures(SMALL, HEADLINE, "1f", spec.model_copy(update={"attacks": full})) == (
        "the suite: the track says version 3, small, the run has the budget full",
    )


def test_one_more_or_one_longer_attack_than_the_suite_has_is_a_departure(row: BoardRow) -> None:
    spec = row.headline.result.spec
    threat = threat_of(spec.threat)
    more = (*spec.attacks, attack_spec(Push(name="mine"), threat))
    attacks = list(suite())
    place = next(i for i, attack in enumerate(attacks) if attack.name == "apgd-ce")
    attacks[place] = replace(attacks[place], iterations=500)
    longer = tuple(attack_spec(attack, threat) for attack in attacks)
    for changed, name in ((more, "mine"), (longer, "apgd-ce")):
        assert departures(SMALL, HEADLINE, "1f", spec.model_copy(update={"attacks": changed})) == (
            "the suite: the track says version 3, small, and the run has other attacks: " + name,
        )
    backwards = spec.model_copy(update={"attacks": spec.attacks[::-1]})
    (said,) = departures(SMALL, HEADLINE, "1f", backwards)  # it decides where a run stops
    assert said.startswith("the order of the attacks: the run has rays, ")


def test_row_stays_valid_when_the_digests_of_its_track_are_fixed(put: Put, tmp_path: Path) -> None:
    open_track = SMALL.model_copy(update={"weights": None, "digest": None})
    put(open_track)
    begin(tmp_path / "row", open_track, "1f")
    for changes in ({"digest": SMALL.digest}, {"weights": SMALL.weights}, {}):
        fixed = SMALL if not changes else open_track.model_copy(update=changes)
        put(fixed)
        assert track_of(read_row(tmp_path / "row"), tmp_path / "row") == fixed
        begin(tmp_path / "row", fixed, "1f")
    with pytest.raises(ConfigError, match="is the row of another evaluation"):
        begin(tmp_path / "row", SMALL.model_copy(update={"seed": 1}), "1f")


def cut_journal(run: Path) -> None:
    """Leave the first half of a journal, as an interrupted run does."""
    lines = (run / JOURNAL).read_text().splitlines(keepends=True)
    (run / JOURNAL).write_text("".join(lines[: len(lines) // 2]))
    (run / "result.json").unlink()


@pytest.mark.parametrize("cut", [HEADLINE, VIEWS])
def test_interrupted_run_is_not_compared_with_the_views_run(
    made: Path, put: Put, tmp_path: Path, cut: str
) -> None:
    put(SMALL)
    shutil.copytree(made, tmp_path / "row")
    cut_journal(tmp_path / "row" / cut)
    row = read_board_row(tmp_path / "row")
    assert not row.stopped
    assert row.less_views is None
    assert "not finished" in to_page([row], tmp_path)


def test_page_names_departures_of_every_run(row: BoardRow, tmp_path: Path) -> None:
    assert row.views is not None
    views = replace(row.views, departures=("seed: other",))
    variant = replace(row.headline, name="by-class", departures=("eps: other",))
    page = to_page([replace(row, views=views, variants=(variant,))], tmp_path)
    assert "Not as the track says: by-class: eps: other; views: seed: other" in page


def submitted_copy(made: Path, folder: Path) -> TrustEntry:
    """Copy the headline run of a row, submit it, and return a check of it."""
    shutil.copytree(made, folder, ignore=shutil.ignore_patterns(VIEWS))
    submission = RowSubmission(
        name=NAME,
        track=SMALL.name,
        factory=NAME,
        repository="https://example.org/code",
        commit="a" * 40,
        contact="me",
        license="MIT",
        evaluated_by="me",
        identity=load_run(folder / HEADLINE).run.identity,
        manifest=declared_of(folder),
    )
    write_submission(folder, submission)
    assert submission.identity is not None
    return TrustEntry(
        state="records verified",
        identity=submission.identity,
        manifest=submission.manifest,
        submission=submission.digest,
        by="us",
        date="2026-01-02",
    )


def checked_copy(made: Path, folder: Path) -> TrustEntry:
    """Copy and submit a row, and record that a maintainer has checked it."""
    entry = submitted_copy(made, folder)
    add_trust(folder, entry)
    return entry


def test_trust_counts_only_checks_of_the_same_run(made: Path, put: Put, tmp_path: Path) -> None:
    put(SMALL)
    folder = tmp_path / "row"
    entry = submitted_copy(made, folder)
    assert entry.manifest == manifest_of(folder).declared
    add_trust(folder, entry.model_copy(update={"identity": "0" * 64, "state": "re-attacked"}))
    assert read_board_row(folder).trust == "claimed"
    assert read_board_row(folder).unbound == "the 1 check in trust.json is of another run"
    add_trust(folder, entry)
    assert read_board_row(folder).unbound is None
    add_trust(folder, entry)
    assert read_board_row(folder).trust == "records verified"
    assert len(read_board_row(folder).checks) == 1
    again = entry.model_copy(update={"state": "re-attacked", "nonce": "n", "units": 2, "of": 9})
    add_trust(folder, again)
    assert read_board_row(folder).trust == "re-attacked (2 of 9 attacks)"
    counts = {"static": {"units": 1, "of": 80}, NAME: {"units": 2, "of": 0}}
    for of, said in (
        (0, "1 of 80 attacks on the base model; the defense was not attacked"),
        (64, "1 of 80 attacks on the base model; 2 of 64 attacks on the defense"),
    ):
        counts[NAME]["of"] = of
        words = {name: RerunCount(**count) for name, count in counts.items()}
        more = again.model_copy(update={"units": 3 + of, "by_defense": words})
        add_trust(folder, more)
        assert read_board_row(folder).trust == f"re-attacked ({said})"
    shutil.copytree(folder, tmp_path / "void")
    trust = tmp_path / "void" / "trust.json"
    trust.write_text(json.dumps(json.loads(trust.read_text()) | {"void": "Tuned on the half"}))
    assert [row.void for row in list_rows(tmp_path)] == [None, "Tuned on the half"]


def test_challenge_to_the_base_model_does_not_raise_the_difference(row: BoardRow) -> None:
    run = row.headline.run
    harmless = forged_challenge(run, "Ada", STATIC, {STATIC: False, NAME: True})
    challenged = replace(run, challenges=(harmless,))
    headline = replace(row.headline, run=challenged, result=challenged.result)
    found = headline.defense.difference
    assert found is not None
    assert row.difference is not None
    assert row.difference.value is not None
    assert (found.value or 0.0) > row.difference.value
    assert replace(row, headline=headline).difference == row.difference
    assert headline.to_json()["difference"] == row.difference.to_json()


def test_challenge_that_nobody_checked_is_named_and_does_not_count(
    made: Path, put: Put, tmp_path: Path
) -> None:
    put(SMALL)
    folder = tmp_path / "row"
    checked_copy(made, folder)
    before = read_board_row(folder)
    run = load_run(folder / HEADLINE)
    forged = forged_challenge(run, "Mallory", NAME, {NAME: False})
    add_challenge(folder / HEADLINE, forged)
    row = read_board_row(folder)
    assert row.difference == before.difference
    assert row.headline.result == before.headline.result
    assert row.broken_by == ()
    assert row.trust == "records verified, challenged by Mallory (not checked)"
    assert row.to_json()["challenged_by"] == ["Mallory"]
    assert "challenged by Mallory (not checked)" in to_page([row], tmp_path)


def test_checked_challenge_counts_and_may_not_be_removed_or_edited(
    made: Path, put: Put, tmp_path: Path
) -> None:
    put(SMALL)
    folder = tmp_path / "row"
    entry = checked_copy(made, folder)
    before = read_board_row(folder)
    run = load_run(folder / HEADLINE)
    real = forged_challenge(run, "Ada", NAME, {NAME: False})
    sha256 = add_challenge(folder / HEADLINE, real)
    add_trust(folder, entry.model_copy(update={"challenges": {HEADLINE: (sha256,)}}))
    row = read_board_row(folder)
    assert row.trust == "records verified, lowered by Ada"
    assert before.difference is not None
    assert row.difference is not None
    assert (row.difference.value or 0.0) < (before.difference.value or 0.0)
    lines = folder / HEADLINE / CHALLENGES
    edited = real.model_copy(update={"by": "Bob"})
    for content in (None, b"", line_of(edited)):
        lines.unlink() if content is None else lines.write_bytes(content)
        with pytest.raises(RecordError, match=f"lacks 1 challenge that trust.json .*{sha256}"):
            read_board_row(folder)


def forge_natural(folder: Path) -> None:
    """Change a natural prediction of the static model, and recompute the checksum."""
    journal = folder / HEADLINE / JOURNAL
    lines = []
    for line in journal.read_text().splitlines():
        record = json.loads(line)["record"]
        if record["kind"] == "natural" and record["defense"] == "static":
            record["served"][0] = (record["served"][0] + 1) % 4
        lines.append(canonical({"record": record, "sha256": digest(record)}))
    journal.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("old", ["manifest", "submission", None])
def test_checks_of_changed_or_unnamed_records_give_no_trust(
    made: Path, put: Put, tmp_path: Path, old: str | None
) -> None:
    put(SMALL)
    folder = tmp_path / "row"
    checked = {"state": "re-attacked", "nonce": "n", "units": 1, "of": 9}
    entry = submitted_copy(made, folder).model_copy(update=checked)
    if old is not None:
        entry = entry.model_copy(update={old: None})
    add_trust(folder, entry)
    if old is not None:
        trust = json.loads((folder / "trust.json").read_text())
        del trust["entries"][0][old]
        (folder / "trust.json").write_text(json.dumps(trust))
        named = {"manifest": "records"}.get(old, old)
        reason = f"the 1 check in trust.json names no {named}"
    else:
        assert read_board_row(folder).trust == "re-attacked (1 of 9 attacks)"
        forge_natural(folder)
        reason = "the records have changed since the 1 check in trust.json"
    row = read_board_row(folder)
    assert (row.trust, row.unbound, row.to_json()["unbound"]) == ("claimed", reason, reason)
    page = to_page([row], tmp_path)
    assert reason in page
    assert "re-attacked" not in page.partition("<tbody>")[2].partition("</tbody>")[0]


BOUND: dict[str, Any] = {
    "name": "Another",
    "factory": f"{NAME}s",
    "repository": "https://example.org/other",
    "commit": "b" * 40,
    "lock": {"url": "https://example.org/lock", "sha256": "0" * 64},
    "weights": [{"url": "https://example.org/weights", "sha256": "0" * 64}],
    "known_attacks": [{"title": "It", "url": "https://example.org/attack"}],
    "track": "cifar10-l2-0.5-v1",
    "identity": "0" * 64,
}


def edit_submission(folder: Path, **changes: Any) -> None:
    path = folder / "submission.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("field", sorted(BOUND))
def test_submission_that_changed_after_the_check_is_only_claimed(
    made: Path, put: Put, tmp_path: Path, field: str
) -> None:
    put(SMALL)
    folder = tmp_path / "row"
    checked_copy(made, folder)
    assert read_board_row(folder).trust == "records verified"
    edit_submission(folder, contact="us", evaluated_by="us")
    assert read_board_row(folder).trust == "records verified"
    edit_submission(folder, **{field: BOUND[field]})
    row = read_board_row(folder)
    assert row.trust == "claimed"
    assert row.unbound == "the submission has changed since the 1 check in trust.json"
    assert row.unbound in to_page([row], tmp_path)


def test_row_that_fails_its_own_checks_is_only_claimed_and_not_exported(
    made: Path, put: Put, tmp_path: Path
) -> None:
    put(SMALL)
    folder = tmp_path / "row"
    entry = submitted_copy(made, folder)
    edit_submission(folder, identity="0" * 64)
    submission = read_submission(folder)
    assert submission is not None
    add_trust(folder, entry.model_copy(update={"submission": submission.digest}))
    row = read_board_row(folder)
    (problem,) = row.problems
    assert (row.trust, row.unbound) == ("claimed", None)
    assert problem.startswith("submission: the submission names the run 000")
    assert row.to_json()["problems"] == [problem]
    assert problem in to_page([row], tmp_path)
    assert problem in str(reason_to_omit(row))


def test_checked_challenge_still_counts_if_the_submission_changes(
    made: Path, put: Put, tmp_path: Path
) -> None:
    put(SMALL)
    folder = tmp_path / "row"
    entry = submitted_copy(made, folder)
    run = load_run(folder / HEADLINE)
    sha256 = add_challenge(folder / HEADLINE, forged_challenge(run, "Ada", NAME, {NAME: False}))
    add_trust(folder, entry.model_copy(update={"challenges": {HEADLINE: (sha256,)}}))
    edit_submission(folder, commit="b" * 40)
    assert read_board_row(folder).trust == "claimed, lowered by Ada"


@pytest.mark.parametrize(
    ("deleted", "said"),
    [
        (("run.json", "plan.json", JOURNAL), "has no run.json, plan.json, journal.jsonl: the boa"),
        (("run.json",), "has no run.json: the board shows only what follows from the records"),
        ((JOURNAL,), "has no journal.jsonl: the board"),
    ],
)
def test_row_without_all_its_records_is_refused(
    made: Path, put: Put, tmp_path: Path, deleted: tuple[str, ...], said: str
) -> None:
    put(SMALL)
    folder = tmp_path / "row"
    shutil.copytree(made, folder)
    for name in deleted:
        (folder / HEADLINE / name).unlink()
    with pytest.raises(RecordError, match=said):
        read_board_row(folder)
    assert dent("board", "page", str(tmp_path), "-o", str(tmp_path / "page.html")).code != 0
    assert not (tmp_path / "page.html").exists()


def test_rows_are_found_in_subfolders_and_damaged_rows_are_refused(
    made: Path, put: Put, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(SMALL)
    shutil.copytree(made.parents[1], tmp_path / "board")
    shutil.copytree(made, tmp_path / "board" / "toy" / "other")
    assert len(list_rows(tmp_path / "board")) == 2
    listed = json.loads(
        dent("board", "page", str(tmp_path / "board"), "-o", str(tmp_path / "b.html"), "--json").out
    )
    assert [each["name"] for each in listed] == [NAME, NAME]
    assert "headline/report.html" not in (tmp_path / "b.html").read_text()
    for folder in (tmp_path / "board").rglob("adversarial"):
        shutil.rmtree(folder)
    out = tmp_path / "c.html"
    assert dent("board", "page", str(tmp_path / "board"), "-o", str(out), "--reports").code == 0
    assert 'href="board/toy/shifted/headline/report.html"' in out.read_text()
    report = (tmp_path / "board" / "toy" / "shifted" / "headline" / "report.html").read_text()
    assert "torch-dent evaluation report" in report
    with monkeypatch.context() as patch:
        deny(patch, tmp_path / "board" / "toy")
        with pytest.raises(RecordError, match=r"toy cannot be looked into: Permission denied"):
            list_rows(tmp_path / "board")
    shutil.rmtree(tmp_path / "board" / "toy" / "other" / HEADLINE)
    with pytest.raises(RecordError, match="has no headline run yet"):
        list_rows(tmp_path / "board")
    put(SMALL.model_copy(update={"seed": 3}))
    with pytest.raises(RecordError, match="the track 'toy-v1' had the identity"):
        list_rows(tmp_path / "board")
