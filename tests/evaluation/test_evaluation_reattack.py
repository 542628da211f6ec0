"""Re-attacks, the diagnostics of attacks that did nothing, and misnamed defenses."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dent import DENT, DENT_PLUS, ConfigError, Dent, DentConfig
from dent.attacks import PGD, Outcome
from dent.defenses import Hedge
from dent.evaluation import Reattack, Settings, Subject, evaluate, load_run, verify
from dent.evaluation.records.folder import RUN
from dent.evaluation.records.journal import JOURNAL
from dent.evaluation.records.schema import ProbeRecord, UnitRecord
from dent.evaluation.records.spec import EvaluationSpec
from dent.storage.canonical import canonical, digest
from tests.evaluation.subjects import (
    SMALL,
    Boast,
    Guess,
    Masked,
    Push,
    Wrapper,
    make_model,
    make_subject,
)

WHOLE = Settings(n=24, batch_size=8)


def lazy(self: Push, target: Any, threat: Any, seed: int) -> Outcome:
    """Replace `Push.run`: do nothing and claim nothing."""
    del self, threat, seed
    return Outcome(target.natural, torch.zeros_like(target.labels, dtype=torch.bool))


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reattack") / "run"
    evaluate(make_subject(), WHOLE, out=path)
    return path


@pytest.fixture(scope="module")
def forged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in which no member was fooled, because the attacks did nothing."""
    path = tmp_path_factory.mktemp("reattack") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Push, "run", lazy)
        evaluate(make_subject(), WHOLE, out=path)
    return path


def test_verify_without_reattack_reports_that_attacks_were_not_rerun(honest: Path) -> None:
    found = verify(honest, make_subject())
    assert (found.status, found.attacks, found.reattacked) == ("verified", "not re-run", None)
    assert found.says == "records verified, attacks not re-run"


def test_reattack_of_an_honest_run_gives_equal_results_and_writes_nothing(honest: Path) -> None:
    seen: list[tuple[int, int]] = []
    before = {path: path.stat().st_mtime_ns for path in honest.rglob("*")}
    found = verify(
        honest, make_subject(), reattack=Reattack(), progress=lambda a, b: seen.append((a, b))
    )
    assert found.status == "verified", found.problems
    assert found.reattacked is not None
    # 2 attacks, 2 defenses, 3 batches.
    assert (len(found.reattacked.units), found.reattacked.of, found.reattacked.same) == (12,) * 3
    assert found.says == "verified, 12 of 12 attacks re-run"
    assert seen[-1] == (len(seen), len(seen))
    assert {path: path.stat().st_mtime_ns for path in honest.rglob("*")} == before


def test_attacks_that_did_nothing_pass_record_checks_and_fail_the_reattack(forged: Path) -> None:
    static = load_run(forged).result.defenses["static"]
    assert static.attack("push").served == static.natural  # the attack did nothing
    assert verify(forged, make_subject()).status == "verified"
    for asked in (Reattack(), Reattack(1, "nonce")):
        found = verify(forged, make_subject(), reattack=asked)
        assert found.status == "failed"
        assert re.search(
            r"attacks: attack/\d/\w+/\w+: .*queries.* not the same when attacked again",
            found.problems[0],
        )


def elsewhere(folder: Path, **changes: Any) -> None:
    """Edit the records as if the run had been made on another kind of device."""
    run = json.loads((folder / RUN).read_text())
    run["sessions"][0].update({"device": "cuda: another", **changes})
    (folder / RUN).write_text(json.dumps(run))
    (folder / "result.json").unlink(missing_ok=True)


def test_reattack_on_another_device_finds_large_differences_by_a_paired_test(
    forged: Path, tmp_path: Path
) -> None:
    shutil.copytree(forged, tmp_path / "run")
    elsewhere(tmp_path / "run")
    found = verify(tmp_path / "run", make_subject(), reattack=Reattack())
    assert found.status == "failed"
    again = found.reattacked
    assert again is not None
    assert not again.same_place
    worst = next(each for each in again.paired if each.defense == "static")
    assert worst.only_stood > 10
    assert worst.only_stands == 0
    # McNemar's exact test by hand: all k pairs that differ do so in the same direction.
    assert worst.p_value == pytest.approx(2 * 0.5**worst.only_stood)
    assert any("stand as recorded" in problem for problem in found.problems)


def test_reattack_on_another_device_ignores_query_counts_and_needs_enough_members(
    honest: Path, tmp_path: Path
) -> None:
    shutil.copytree(honest, tmp_path / "run")
    elsewhere(tmp_path / "run")
    lines = (tmp_path / "run" / JOURNAL).read_text().splitlines()
    for at, line in enumerate(lines):
        record = json.loads(line)["record"]
        if record["kind"] == "attack":
            record["queries"] += 1
            lines[at] = canonical({"record": record, "sha256": digest(record)})
    (tmp_path / "run" / JOURNAL).write_text("\n".join(lines) + "\n")
    found = verify(tmp_path / "run", make_subject(), reattack=Reattack())
    assert found.status in ("verified", "incomplete"), found.problems
    assert found.reattacked is not None
    assert found.reattacked.same == 0
    assert {each.p_value for each in found.reattacked.paired} == {1.0}
    few = verify(tmp_path / "run", make_subject(), reattack=Reattack(1, "n"))
    assert few.status == "incomplete"
    check = next(check for check in few.checks if check.name == "attacks")
    assert "too few to tell" in check.problems[0]


@pytest.mark.parametrize("symptom", ["claims", "gradients"])
def test_reattack_on_another_device_finds_forged_claims_and_gradients(
    tmp_path: Path, symptom: str
) -> None:
    """The edited records hide that claims differ from the submission, or that gradients are 0."""
    folder = tmp_path / "run"
    model = make_model()
    subject = make_subject({"it": Masked(model)}, [Boast() if symptom == "claims" else Push()])
    evaluate(subject, WHOLE, out=folder)
    elsewhere(folder)
    assert verify(folder, subject, reattack=Reattack()).problems == ()
    lines = (folder / JOURNAL).read_text().splitlines()
    for at, line in enumerate(lines):
        record = json.loads(line)["record"]
        if record["kind"] == "attack" and record["defense"] == "it":
            if symptom == "claims":
                record["claimed"] = [False] * len(record["claimed"])
            else:
                assert sum(record["zero_gradients"])
                record["zero_gradients"] = [0] * len(record["zero_gradients"])
            lines[at] = canonical({"record": record, "sha256": digest(record)})
    (folder / JOURNAL).write_text("\n".join(lines) + "\n")
    assert verify(folder, subject).problems == ()  # only a re-attack can find the edit
    found = verify(folder, subject, reattack=Reattack())
    assert len(found.problems) == 1
    says = {
        "claims": "the claims of boast differ from the submission",
        "gradients": "push has no gradient in half of its steps",
    }
    assert re.fullmatch(
        rf"attacks: it: {says[symptom]} for \d+ of 24 members when attacked again, for \d as "
        "recorded",
        found.problems[0],
    )


def drop_gain(record: dict[str, Any]) -> None:
    for follow_up in record["more_iterations"]:
        follow_up["before"] = follow_up["correct"]


def drop_follow_ups(record: dict[str, Any]) -> None:
    record["more_iterations"] = []


def edited(source: Path, folder: Path, change: Any) -> Path:
    """Copy a run, and edit its record of the probe of `it`."""
    shutil.copytree(source, folder)
    lines = (folder / JOURNAL).read_text().splitlines()
    for at, line in enumerate(lines):
        record = json.loads(line)["record"]
        if (record["kind"], record["defense"]) == ("probe", "it"):
            change(record)
            lines[at] = canonical({"record": record, "sha256": digest(record)})
    (folder / JOURNAL).write_text("\n".join(lines) + "\n")
    (folder / "result.json").unlink()
    return folder


def hasty() -> Subject:
    """A defense with steps, attacked in so few iterations that more of them help."""
    model = make_model()
    attacks = [PGD(iterations=1, step=0.2, random_start=False), Guess()]
    return make_subject({"it": Dent(model, DentConfig(steps=2))}, attacks, model=model)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with full diagnostics, in which more iterations broke two members more."""
    path = tmp_path_factory.mktemp("reattack") / "full"
    evaluate(hasty(), Settings(n=32, batch_size=32, diagnostics="full"), out=path)
    record = load_run(path).records["probe/0/it/None"]
    assert isinstance(record, ProbeRecord)
    (follow_up,) = record.more_iterations or ()
    assert follow_up.before is not None
    assert follow_up.before > follow_up.correct + 1
    return path


def test_reattack_repeats_the_attacks_with_more_iterations(full: Path) -> None:
    found = verify(full, hasty(), reattack=Reattack())
    assert found.status == "verified", found.problems
    again = found.reattacked
    assert again is not None
    # 2 attacks on 2 defenses, and one unit of extra attacks for each of these.
    assert (len(again.units), again.of, again.same) == (6, 6, 6)
    assert {"probe/0/static/None", "probe/0/it/None"} <= set(again.units)
    drawn = {
        unit.key for nonce in range(20) for unit in Reattack(2, str(nonce)).draw(load_run(full))
    }
    assert drawn == set(again.units)


@pytest.mark.parametrize("change", [drop_gain, drop_follow_ups])
def test_reattack_finds_forged_attacks_with_more_iterations(
    full: Path, tmp_path: Path, change: Any
) -> None:
    forged = edited(full, tmp_path / "run", change)
    assert "more iterations still help" in flags(full, "it")
    assert "more iterations still help" not in flags(forged, "it")
    found = verify(forged, hasty(), reattack=Reattack())
    assert found.problems == (
        "attacks: probe/0/it/None: more_iterations not the same when attacked again",
    )
    elsewhere(forged)
    (problem,) = verify(forged, hasty(), reattack=Reattack()).problems
    assert re.fullmatch(
        r"attacks: it: more iterations still help for \d+ of 16 members when attacked again, for 0 "
        "as recorded",
        problem,
    )


def test_reattack_on_another_device_accepts_one_member_that_more_iterations_break(
    full: Path, tmp_path: Path
) -> None:
    def one_less(record: dict[str, Any]) -> None:
        record["more_iterations"][0]["correct"] += 1

    forged = edited(full, tmp_path / "run", one_less)
    elsewhere(forged)
    found = verify(forged, hasty(), reattack=Reattack())
    assert found.problems == ()
    assert found.reattacked is not None
    assert found.reattacked.same == found.reattacked.of - 1


def test_reattack_repeats_the_extra_attacks_of_a_run_by_attack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def by_attack(spec: EvaluationSpec, **_: Any) -> EvaluationSpec:
        return spec.model_copy(update={"schedule": "by-attack"})

    monkeypatch.setattr("dent.evaluation.subject.scheduled", by_attack)
    settings = Settings(n=32, batch_size=32, diagnostics="full", until="end")
    evaluate(hasty(), settings, out=tmp_path / "run")
    found = verify(tmp_path / "run", hasty(), reattack=Reattack())
    assert found.problems == ()
    assert found.reattacked is not None
    assert found.reattacked.same == found.reattacked.of == 6
    assert "certificate/0/it/None" in found.reattacked.units


def test_reattack_without_full_diagnostics_repeats_no_attacks_with_more_iterations(
    honest: Path,
) -> None:
    assert {unit.kind for unit in Reattack().draw(load_run(honest))} == {"attack"}


def test_nonce_selects_the_units_and_every_unit_is_drawn_by_some_nonce(honest: Path) -> None:
    recorded = load_run(honest)
    everything = {unit.key for unit in Reattack().draw(recorded)}
    draws = [Reattack(3, str(nonce)).draw(recorded) for nonce in range(40)]
    assert {len(draw) for draw in draws} == {3}
    assert {unit.key for draw in draws for unit in draw} == everything
    assert len(set(draws)) > 20
    assert Reattack(3, "7").draw(recorded) == draws[7]
    assert Reattack(99, "7").draw(recorded) == Reattack().draw(recorded)


def test_draw_always_has_a_unit_of_the_defense_if_it_was_attacked(honest: Path) -> None:
    recorded = load_run(honest)
    for count in (1, 2):
        draws = [Reattack(count, str(nonce)).draw(recorded) for nonce in range(40)]
        assert {len(draw) for draw in draws} == {count}
        assert all(any(unit.defense == "dent" for unit in draw) for draw in draws)
    on_defense = {unit.key for unit in Reattack().draw(recorded) if unit.defense == "dent"}
    drawn = {unit.key for nonce in range(40) for unit in Reattack(1, str(nonce)).draw(recorded)}
    assert drawn == on_defense
    records = {key: record for key, record in recorded.records.items() if key not in on_defense}
    unattacked = replace(recorded, records=records)
    assert {unit.defense for unit in Reattack(1, "7").draw(unattacked)} == {"static"}


def test_reattack_counts_the_units_of_each_defense(honest: Path) -> None:
    found = verify(honest, make_subject(), reattack=Reattack(1, "7")).reattacked
    assert found is not None
    counts = {name: (count.units, count.of) for name, count in found.by_defense.items()}
    assert counts == {"static": (0, 6), "dent": (1, 6)}


@pytest.mark.parametrize(
    ("count", "nonce", "says"),
    [(0, "n", "at least 1"), (3, "", "Choose it after the run")],
)
def test_reattack_of_zero_units_or_with_an_empty_nonce_is_refused(
    count: int, nonce: str, says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        Reattack(count, nonce)


def test_reattack_without_a_subject_is_not_run(honest: Path) -> None:
    found = verify(honest, reattack=Reattack())
    assert (found.status, found.attacks) == ("incomplete", "not re-run")
    assert {check.name: check.state for check in found.checks}["attacks"] == "not-run"


def flags(folder: Path, defense: str) -> set[str]:
    return {flag.name for flag in load_run(folder).result.defenses[defense].raised}


TELLS = {"attack moved nothing", "attack gained nothing", "fewer queries than planned"}


def test_records_of_attacks_that_did_nothing_raise_diagnostics(honest: Path, forged: Path) -> None:
    assert not flags(honest, "static") & TELLS
    assert flags(forged, "static") >= TELLS
    sentence = next(
        flag.sentence
        for flag in load_run(forged).result.defenses["static"].raised
        if flag.name == "attack moved nothing"
    )
    assert "nudge, push moved no image:" in sentence


def test_records_contain_planned_queries_used_eps_and_natural_loss(honest: Path) -> None:
    recorded = load_run(honest)
    for record in recorded.units():
        if record.kind == "attack":
            assert record.planned == 2
            assert record.used is not None
            strength = 0.5 if record.attack == "nudge" else 1.0
            assert max(record.used) == pytest.approx(strength, abs=1e-3)
        else:
            assert record.planned is record.used is None
    natural = recorded.records["natural/0/static/None"]
    assert isinstance(natural, UnitRecord)
    x, y = make_subject().dataset.batch(range(8))
    expected = torch.nn.functional.cross_entropy(make_model()(x), y)
    assert natural.loss == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize("field", ["used", "loss"])
def test_forged_distance_and_loss_are_found_by_verify(
    field: str, honest: Path, tmp_path: Path
) -> None:
    shutil.copytree(honest, tmp_path / "run")
    lines = (tmp_path / "run" / JOURNAL).read_text().splitlines()
    record = json.loads(lines[3])["record"]
    record[field] = [0.25] * 8 if field == "used" else record[field] + 0.1
    lines[3] = canonical({"record": record, "sha256": digest(record)})
    (tmp_path / "run" / JOURNAL).write_text("\n".join(lines) + "\n")
    (tmp_path / "run" / "result.json").unlink()
    problems = verify(tmp_path / "run", make_subject()).problems
    says = "another share of eps" if field == "used" else "the loss is not as recorded"
    assert any(says in problem for problem in problems), problems


MODEL = make_model()
MISNAMED = {
    "dent as dent+": ({"dent+": Dent(MODEL, DENT)}, r"called 'dent\+' is dent:"),
    "dent+ as dent": ({"dent": Dent(MODEL, DENT_PLUS)}, r"called 'dent' is dent\+"),
    "static as dent": ({"dent": Dent(MODEL, DentConfig(steps=0))}, "called 'dent' is static"),
    "another as dent": ({"dent": Wrapper(MODEL)}, "called 'dent' is tests.*Wrapper"),
    "dent as static": ({"static": Dent(MODEL, DENT)}, "called 'static' is dent"),
    "custom as static": (
        {"static": Dent(MODEL, DentConfig(steps=2))},
        "called 'static' is another configuration",
    ),
    "hedge as dent": ({"dent": Hedge(MODEL)}, "called 'dent' is hedge"),
    "dent as hedge": ({"hedge": Dent(MODEL, DENT)}, "called 'hedge' is dent"),
}


@pytest.mark.parametrize("name", MISNAMED)
def test_defense_with_the_name_of_another_known_defense_is_refused(name: str) -> None:
    defenses, says = MISNAMED[name]
    with pytest.raises(ConfigError, match=says):
        evaluate(make_subject(defenses, [], model=MODEL), Settings(n=2))


def test_defense_renamed_in_the_records_is_found_by_verify(tmp_path: Path) -> None:
    subject = make_subject({"mine": Dent(MODEL, DENT)}, [], model=MODEL)
    evaluate(subject, replace_n(SMALL), out=tmp_path / "run")
    for file in (RUN, JOURNAL):
        text = (tmp_path / "run" / file).read_text()
        (tmp_path / "run" / file).write_text(text.replace('"mine"', '"dent+"'))
    lines = [
        json.loads(line)["record"] for line in (tmp_path / "run" / JOURNAL).read_text().splitlines()
    ]
    forged = (canonical({"record": each, "sha256": digest(each)}) for each in lines)
    (tmp_path / "run" / JOURNAL).write_text("\n".join(forged) + "\n")
    found = verify(tmp_path / "run", replace(subject, defenses={"dent+": Dent(MODEL, DENT_PLUS)}))
    assert any("names: the defense called 'dent+' is dent:" in each for each in found.problems)


def replace_n(settings: Settings) -> Settings:
    return Settings(**{**settings.to_json(), "n": 2})


def test_known_name_with_other_settings_raises_a_diagnostic() -> None:
    flagged = evaluate(make_subject(), Settings(n=2)).defenses
    assert "not as named" in {flag.name for flag in flagged["dent"].raised}
    named = make_subject({"mine": Dent(MODEL, DentConfig(steps=2)), "dent": Dent(MODEL, DENT)})
    for found in evaluate(named, Settings(n=2)).defenses.values():
        assert "not as named" not in {flag.name for flag in found.raised}
