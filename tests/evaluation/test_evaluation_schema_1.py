"""Runs that were started with schema 1 keep their meaning, their identity and their files."""

import copy
import json
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dent import Dent, DentConfig, SmoothingConfig
from dent.attacks import make, make_from, names
from dent.evaluation import (
    EvaluationResult,
    EvaluationSpec,
    Settings,
    Subject,
    describe,
    evaluate,
    load_run,
)
from dent.evaluation.attack_specs import attack_of, attack_spec
from dent.evaluation.merging import merge
from dent.evaluation.records.schema import RunRecord
from dent.evaluation.records.spec import AttackSpec
from dent.evaluation.records.upgrade import upgraded
from dent.evaluation.subject import threat_of
from dent.evaluation.verification.verify import verify
from dent.storage.canonical import digest
from dent.threat import NORMS, ThreatModel
from tests.attacks.attack_toys import SMALL
from tests.evaluation.subjects import Broken, Guess, Push, make_model, make_subject

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "golden" / "v1"


def _of_schema_1(paths: Iterable[Path]) -> list[Path]:
    return [
        path
        for path in sorted(paths)
        if json.loads(path.read_text())["spec"]["schema_version"] == 1
    ]


RUNS = _of_schema_1(
    path for folder in (GOLDEN, ROOT / "docs/paper/cpu/runs") for path in folder.rglob("run.json")
)
RESULTS = _of_schema_1([GOLDEN / "result.json", *(ROOT / "docs/evaluation/results").glob("*.json")])


def test_there_are_runs_of_schema_1() -> None:
    assert len(RUNS) > 120
    assert len(RESULTS) > 10


def test_schema_1_records_are_written_back_unchanged() -> None:
    for path in RUNS:
        written = json.loads(path.read_text())
        run = RunRecord.model_validate_json(path.read_text())
        assert run.to_json() == written
        assert run.spec.identity == run.identity == digest(written["spec"])
    for path in RESULTS:
        kept = json.loads(path.read_text())["spec"]
        result = EvaluationResult.model_validate_json(path.read_text())
        assert (result.to_json()["spec"], result.spec.written_as) == (kept, 1)
        assert result.spec.identity == result.identity


def test_every_registered_attack_of_schema_1_runs_is_rebuilt_from_its_record() -> None:
    strangers = set()
    for path in RUNS:
        spec = RunRecord.model_validate_json(path.read_text()).spec
        for each in spec.attacks:
            if each.attack is None:
                strangers.add(each.kind)
                continue
            again = attack_spec(attack_of(each), threat_of(spec.threat))
            assert again.model_copy(update={"versions": each.versions}) == each
        again_spec = EvaluationSpec.model_validate(spec.newest.to_json())
        assert (again_spec, again_spec.written_as) == (spec.newest, 2)
    assert strangers == {"tests.evaluation.subjects.Push", "tests.evaluation.subjects.Guess"}


def test_upgrade_converts_a_handwritten_schema_1_specification() -> None:
    part = {"iterations": 7, "restarts": 1}
    apgd = part | {"name": "apgd-ce", "rho": 0.75, "large_radii": False}
    aimed = apgd | {"name": "apgd-t", "targets": 9}
    old: dict[str, Any] = {
        "schema_version": 1,
        "dataset": {"name": "toy"},
        "attacks": [
            _old("mine.Attack", {"strength": 2}),
            _old(
                "dent.attacks.adaptive.through.AdaptiveAPGD",
                {"rung": "bpda", "steps": None, "losses": ["ce"]},
            ),
            _old(
                "dent.attacks.autoattack.AutoAttack",
                {
                    "protocol": "frozen",
                    "batch_size": None,
                    "pyautoattack": "1.0",
                    "parts": [
                        apgd,
                        aimed,
                        part | {"name": "fab-t", "targets": 9},
                        part | {"name": "square", "iterations": 50},
                    ],
                },
            ),
        ],
    }
    before = copy.deepcopy(old)
    new = upgraded(old)
    assert old == before
    assert new["schema_version"] == 2
    assert new["dataset"] == old["dataset"]
    assert [(each["attack"], each["versions"]) for each in new["attacks"]] == [
        (None, {}),
        ("adaptive-bpda", {}),
        ("standard", {"pyautoattack": "1.0"}),
    ]
    assert [each["settings"] for each in new["attacks"]] == [
        {"strength": 2},
        {"steps": None, "losses": ["ce"]},
        {
            "protocol": "frozen",
            "batch_size": None,
            "iterations": 7,
            "restarts": None,
            "targets": 9,
            "rho": 0.75,
            "square_iterations": 50,
        },
    ]


def _old(kind: str, config: dict[str, Any]) -> dict[str, Any]:
    return {"name": "any", "kind": kind, "config": config, "protocol": "frozen"}


@pytest.mark.parametrize("name", names())
def test_every_attack_is_rebuilt_from_its_record(name: str) -> None:
    made = [make(name), make(name, **SMALL[name])]
    if name in ("standard", "apgd-ce"):
        made += [make_from(f"{name}:protocol=published,batch_size=4"), make(name, ask="standing")]
    for attack in made:
        for norm in NORMS:
            described = attack_spec(attack, ThreatModel(norm, 0.1))
            read = AttackSpec.model_validate_json(json.dumps(described.to_json()))
            again = attack_of(read)
            assert (again.name, again.registered) == (attack.name, attack.registered)
            assert attack_spec(again, ThreatModel(norm, 0.1)) == described
            assert again.queries(10, norm) == attack.queries(10, norm)


def golden_subject() -> Subject:
    """Return the subject that `make_golden` evaluated."""
    model = make_model()
    config = DentConfig(steps=2, statistics="test", smoothing=SmoothingConfig(sigma=0.5))
    defenses = {"dent": Dent(model, config), "broken": Broken(model)}
    return make_subject(defenses, [Push(), Guess()], model=model)


def test_resumed_schema_1_run_completes_and_keeps_its_schema(tmp_path: Path) -> None:
    whole = load_run(GOLDEN)
    settings = whole.run.spec.settings
    subject = golden_subject()
    assert describe(subject, settings) == whole.run.spec.newest
    shutil.copytree(GOLDEN, tmp_path / "run")
    journal = tmp_path / "run" / "journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[:-2]))
    evaluate(subject, settings, out=tmp_path / "run")
    again = load_run(tmp_path / "run")
    assert set(again.records) == set(whole.records)
    assert again.run.to_json()["spec"] == json.loads((GOLDEN / "run.json").read_text())["spec"]
    assert (again.run.schema_version, again.run.identity) == (1, whole.run.identity)
    for name, found in again.result.defenses.items():
        then = whole.result.defenses[name]
        assert found.worst == then.worst
        assert found.difference == then.difference
    report = verify(tmp_path / "run", subject)
    # What these versions did not record, nobody can check.
    unchecked = {check.name for check in report.checks if check.state == "not-run"}
    assert (report.status, report.problems) == ("incomplete", ())
    assert unchecked == {"probes", "served", "verdict"}


def write_as_schema_1(path: Path) -> None:
    """Rewrite a `run.json` with custom attacks in the format of schema 1."""
    plain = json.loads(path.read_text())
    for each in plain["spec"]["attacks"]:
        assert each.pop("attack") is None
        assert each.pop("versions") == {}
        each["config"] = each.pop("settings")
    plain["spec"]["schema_version"] = plain["schema_version"] = 1
    path.write_text(json.dumps(plain | {"identity": digest(plain["spec"])}))


def test_runs_of_schema_1_and_schema_2_can_be_merged(tmp_path: Path) -> None:
    subject = make_subject({})
    evaluate(subject, Settings(n=4, batch_size=4), out=tmp_path / "new")
    shutil.copytree(tmp_path / "new", tmp_path / "old")
    write_as_schema_1(tmp_path / "old/run.json")
    assert [load_run(tmp_path / name).run.schema_version for name in ("old", "new")] == [1, 2]
    merged = merge([tmp_path / "old", tmp_path / "new"], tmp_path / "both")
    assert merged.missing == ()
    both = load_run(tmp_path / "both").run
    assert (both.schema_version, both.identity) == (1, load_run(tmp_path / "old").run.identity)


def test_different_evaluation_in_the_folder_of_a_schema_1_run_is_refused(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN, tmp_path / "run")
    settings = load_run(GOLDEN).run.spec.settings
    stronger = replace(golden_subject(), attacks=[Push(2.0), Guess()])
    with pytest.raises(Exception, match=r"attacks.push.settings.strength: .* 1.0, .* 2.0"):
        evaluate(stronger, settings, out=tmp_path / "run")
    assert (tmp_path / "run/run.json").read_bytes() == (GOLDEN / "run.json").read_bytes()


def test_changed_copy_of_a_schema_1_specification_has_the_newest_schema() -> None:
    spec = load_run(GOLDEN).run.spec
    fewer = spec.model_copy(update={"attacks": spec.attacks[:1]})
    assert (spec.written_as, fewer.written_as) == (1, 2)
    assert len(fewer.to_json()["attacks"]) == 1
