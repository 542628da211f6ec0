"""Verification: any tampering is found, and by the check that is responsible for it."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dent import Dent, DentConfig
from dent.attacks import make
from dent.evaluation import Settings, Subject, evaluate, load_run, verify
from dent.evaluation.records.folder import dump
from dent.evaluation.records.journal import JOURNAL
from dent.storage.canonical import canonical, digest, without_rulings
from tests.evaluation.subjects import (
    SMALL,
    Masked,
    Push,
    Wrapper,
    make_dataset,
    make_model,
    make_subject,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("verify") / "run"
    evaluate(make_subject(), SMALL, out=path)
    return path


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_an_honest_run_is_verified_and_not_written_to(folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    seen: list[tuple[int, int]] = []
    found = verify(folder, make_subject(), progress=lambda a, b: seen.append((a, b)))
    assert found.status == "verified", found.problems
    assert all(check.looked_at > 0 for check in found.checks)
    assert seen[-1] == (29, 29)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_verify_without_a_subject_reports_the_checks_that_did_not_run(folder: Path) -> None:
    found = verify(folder)
    assert found.status == "incomplete"
    states = {check.name: check.state for check in found.checks}
    assert states["records"] == states["result"] == "passed"
    assert states["served"] == states["threat model"] == "not-run"


def relabel(folder: Path, change: Callable[[dict[str, Any]], None], line: int) -> None:
    """Edit a record and update its checksum."""
    lines = (folder / JOURNAL).read_text().splitlines()
    record = json.loads(lines[line])["record"]
    change(record)
    lines[line] = canonical({"record": record, "sha256": digest(record)})
    (folder / JOURNAL).write_text("\n".join(lines) + "\n")


ATTACK = 3  # attack/0/static/nudge


def flip_served(record: dict[str, Any]) -> None:
    record["served"][0] = (record["served"][0] + 1) % 4


def tensor_of(folder: Path) -> Path:
    return sorted((folder / "adversarial").iterdir())[0]


def one_bit(folder: Path) -> None:
    content = bytearray(tensor_of(folder).read_bytes())
    content[-1] ^= 1
    tensor_of(folder).write_bytes(bytes(content))


def outside(folder: Path, by: float = 0.1) -> None:
    """Move an image out of the ball, and forge every digest that covers it."""
    path = tensor_of(folder)
    images = load_file(path)["adversarial"]
    images[0] = (images[0] + by).clamp(0, 1)
    save_file({"adversarial": images}, path)
    fresh = hashlib.sha256(path.read_bytes()).hexdigest()
    for line in range(len((folder / JOURNAL).read_text().splitlines())):

        def forge(record: dict[str, Any]) -> None:
            ref = record.get("tensor")
            if ref and ref["file"].endswith(path.name):
                ref["sha256"] = fresh

        relabel(folder, forge, line)


def edit_result(folder: Path) -> None:
    plain = json.loads((folder / "result.json").read_text())
    plain["defenses"]["dent"]["natural"]["correct"] += 1
    (folder / "result.json").write_text(json.dumps(plain))


def edit_plan(folder: Path) -> None:
    """Change a label, and forge the digest of the plan."""
    plan = json.loads((folder / "plan.json").read_text())
    plan["batches"][0]["labels"][0] = (plan["batches"][0]["labels"][0] + 1) % 4
    (folder / "plan.json").write_text(json.dumps(plan))
    run = json.loads((folder / "run.json").read_text())
    run["plan"] = digest(plan)
    (folder / "run.json").write_text(json.dumps(run))


def edit_spec(folder: Path) -> None:
    """Claim a larger eps, and forge the identity."""
    run = json.loads((folder / "run.json").read_text())
    run["spec"]["threat"]["eps"] = "16/255"
    run["identity"] = digest(run["spec"])
    (folder / "run.json").write_text(json.dumps(run))


def drop_line(folder: Path) -> None:
    lines = (folder / JOURNAL).read_text().splitlines()
    del lines[ATTACK]
    (folder / JOURNAL).write_text("\n".join(lines) + "\n")


TAMPERING: dict[str, tuple[Callable[[Path], object], str]] = {
    "a bit of a tensor": (one_bit, r"tensors: .*SHA-256 .*, recorded"),
    "a tensor outside the ball, digests forged": (
        outside,
        r"threat model: attack/0/static/nudge: 1 image lies outside linf 8/255",
    ),
    "a tensor deleted": (lambda f: tensor_of(f).unlink(), r"tensors: .*000000-00-00.*is missing"),
    "a line edited": (
        lambda f: (f / JOURNAL).write_text((f / JOURNAL).read_text().replace("[0", "[1", 1)),
        r"records: .*line \d+ does not match its checksum",
    ),
    "a served class, checksum forged": (
        lambda f: relabel(f, flip_served, ATTACK),
        r"served: attack/0/static/nudge: member 0 is served \d, recorded as \d",
    ),
    "an entropy, checksum forged": (
        lambda f: relabel(f, lambda r: r["trace"].update(entropy=[0.125]), ATTACK),
        r"served: attack/0/static/nudge: entropy is not as recorded",
    ),
    "sigma where nothing smooths, checksum forged": (
        lambda f: relabel(f, lambda r: r["trace"].update(sigma_by_step=[[0.5]]), ATTACK),
        r"served: attack/0/static/nudge: sigma by step has another length",
    ),
    "the members of a probe, checksum forged": (
        lambda f: relabel(f, lambda r: r.update(gradient_rows=1, zero_gradients=0), 0),
        r"probes: probe/0/static/None is answered differently",
    ),
    "a seed, checksum forged": (
        lambda f: relabel(f, lambda r: r.update(seed=3), ATTACK),
        r"seeds: attack/0/static/nudge was run with a seed",
    ),
    "a probe, checksum forged": (
        lambda f: relabel(f, lambda r: r.update(zero_gradients=2), 0),
        r"probes: probe/0/static/None is answered differently",
    ),
    "a line dropped": (drop_line, r"completeness: run.json says that the run is complete, but 1"),
    "the result": (edit_result, r"result: .*defenses.dent.natural.correct: the folder has"),
    "a label of the plan, digest forged": (edit_plan, r"plan: .*batches.0.labels.0"),
    "eps of the spec, identity forged": (
        edit_spec,
        r"subject: threat.eps: the folder has '16/255'",
    ),
}


@pytest.mark.parametrize("name", TAMPERING)
def test_tampering_is_found(folder: Path, name: str) -> None:
    tamper, message = TAMPERING[name]
    tamper(folder)
    found = verify(folder, make_subject())
    assert found.status == "failed"
    assert any(re.search(message, problem) for problem in found.problems), found.problems


def forge_certificate(record: dict[str, Any]) -> None:
    point = record["gradient"]["points"][0]
    assert max(point["errors"]) < 1e-3
    point["errors"][0] = 0.25


def forge_huge_eps(record: dict[str, Any]) -> None:
    record["huge_eps"]["correct"] = (record["huge_eps"]["correct"] + 3) % 8


def drop_huge_eps(record: dict[str, Any]) -> None:
    record["huge_eps"] = None


@pytest.mark.parametrize(
    ("forge", "message"),
    [
        (forge_certificate, "probes: probe/0/dent/None has another gradient certificate now"),
        (forge_huge_eps, r"probes: probe/0/dent/None: under the huge eps, \d of 8 members"),
        (drop_huge_eps, "probes: .* are correct now, recorded as nothing was attacked"),
    ],
)
def test_forged_gradient_certificates_and_huge_eps_results_are_found(
    tmp_path: Path, forge: Callable[[dict[str, Any]], None], message: str
) -> None:
    subject = make_subject(attacks=[make("adaptive-unrolled", iterations=1)])
    evaluate(subject, Settings(n=8, batch_size=8), out=tmp_path / "run")
    assert verify(tmp_path / "run", subject).status == "verified"
    relabel(tmp_path / "run", forge, 1)
    found = verify(tmp_path / "run", subject)
    assert any(re.search(message, problem) for problem in found.problems), found.problems


def test_forged_errors_of_a_surrogate_gradient_are_found(tmp_path: Path) -> None:
    attacks = [make("adaptive-unrolled", iterations=1)]
    subject = make_subject(attacks=attacks, defenses={"it": Masked(make_model())})
    evaluate(subject, Settings(n=8, batch_size=8), out=tmp_path / "run")
    assert verify(tmp_path / "run", subject).status == "verified"

    def forge(record: dict[str, Any]) -> None:
        for point in record["gradient"]["points"]:
            point["coarse"] = [0.1] * point["members"]

    relabel(tmp_path / "run", forge, 1)
    found = verify(tmp_path / "run", subject)
    assert any("over large steps" in problem for problem in found.problems), found.problems


def large() -> Subject:
    return make_subject({"it": Wrapper(make_model())}, [Push()], size=400)


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in batches of 100 whose records claim another number of threads."""
    path = tmp_path_factory.mktemp("elsewhere") / "run"
    evaluate(large(), Settings(batch_size=100, transfer=False), out=path)
    run = json.loads((path / "run.json").read_text())
    for session in run["sessions"]:
        session["threads"] += 7
    (path / "run.json").write_text(json.dumps(run))
    return path


@pytest.mark.parametrize(
    ("by_unit", "units", "failed"),
    [(2, 1, []), (3, 1, ["served"]), (2, 4, ["verdict"]), (3, 4, ["served", "verdict"])],
)
def test_verify_on_another_machine_tolerates_only_few_different_predictions(
    elsewhere: Path, tmp_path: Path, by_unit: int, units: int, failed: list[str]
) -> None:
    folder = Path(shutil.copytree(elsewhere, tmp_path / "run"))
    plan = json.loads((folder / "plan.json").read_text())
    lines = [json.loads(line)["record"] for line in (folder / JOURNAL).read_text().splitlines()]
    attacks = [
        index
        for index, record in enumerate(lines)
        if (record["kind"], record["defense"]) == ("attack", "it")
    ]
    for line in attacks[:units]:

        def right(record: dict[str, Any]) -> None:
            labels = plan["batches"][record["batch"]]["labels"]
            pairs = enumerate(zip(record["served"], labels, strict=True))
            broken = [member for member, (served, label) in pairs if served != label]
            for member in broken[:by_unit]:
                record["served"][member] = labels[member]

        relabel(folder, right, line)
    (folder / "result.json").write_bytes(dump(load_run(folder).result))
    found = verify(folder, large())
    assert [check.name for check in found.checks if check.state == "failed"] == failed
    if "verdict" in failed:
        problem = next(check for check in found.checks if check.name == "verdict").problems[0]
        assert re.fullmatch(
            r"it: \d+ of 400 members are correct in the worst case as recorded, "
            r"\d+ of 400 as submitted again",
            problem,
        )


@pytest.mark.parametrize("rules", [None, 1])
@pytest.mark.parametrize(
    ("field", "value", "follows"),
    [
        ("interval", [-0.5, 0.5], True),
        ("method", "another", True),
        ("assumes", "another", True),
        ("value", 0.125, False),
        ("only_static", 7, False),
    ],
)
def test_results_under_other_rules_may_differ_in_statistics_but_not_in_counts(
    folder: Path, rules: int | None, field: str, value: object, *, follows: bool
) -> None:
    plain = json.loads((folder / "result.json").read_text())
    plain["defenses"]["dent"]["difference"][field] = value
    plain["rules"] = rules or plain["rules"]
    (folder / "result.json").write_text(json.dumps(plain))
    check = next(check for check in verify(folder).checks if check.name == "result")
    assert (check.state == "passed") == (follows and rules is not None), check.problems


def test_early_decisions_are_ignored_when_results_of_other_rules_are_compared() -> None:
    then = {"dent": {"decided": None, "worst": {"correct": 3}}}
    now = {"dent": {"decided": {"after": 2}, "worst": {"correct": 3}}}
    assert without_rulings(then) == without_rulings(now)


def changed(what: str) -> Subject:
    subject = make_subject()
    if what == "weights":
        model = make_model()
        with torch.no_grad():
            next(model.parameters())[0, 0, 0, 0] += 1e-6
        return replace(subject, model=model)
    if what == "data":
        return replace(subject, dataset=make_dataset(seed=1))
    return replace(subject, defenses={"dent": Dent(subject.model, DentConfig(steps=3, lr=0.01))})


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("weights", "subject: model.weights"),
        ("data", "subject: dataset.digest"),
        ("defense", "subject: defenses.dent.config.settings.steps: the folder has 2, this run 3"),
    ],
)
def test_changed_weights_dataset_or_defense_are_found(
    folder: Path, what: str, message: str
) -> None:
    found = verify(folder, changed(what))
    assert found.status == "failed"
    assert any(problem.startswith(message) for problem in found.problems), found.problems
    assert {check.name: check.state for check in found.checks}["served"] == "not-run"


def test_a_run_without_its_tensors_is_incomplete(tmp_path: Path) -> None:
    asked = Settings(n=8, batch_size=8, tensors="drop")
    evaluate(make_subject(), asked, out=tmp_path / "run")
    found = verify(tmp_path / "run", make_subject())
    assert found.status == "incomplete"
    check = next(check for check in found.checks if check.name == "threat model")
    assert (check.state, check.problems) == (
        "not-run",
        ("the tensors were not kept (settings.tensors is 'drop')",),
    )


def test_unfinished_run_is_verified_as_far_as_it_is_recorded(tmp_path: Path) -> None:
    def stop(state: object) -> None:
        if getattr(state, "done", 0) == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(make_subject(), SMALL, out=tmp_path / "run", progress=stop)
    found = verify(tmp_path / "run", make_subject())
    assert found.problems == ()
    assert {check.name: check.state for check in found.checks}["result"] == "not-run"


def test_verify_of_a_missing_folder_fails(tmp_path: Path) -> None:
    found = verify(tmp_path / "nothing")
    assert (found.status, found.identity) == ("failed", None)
    assert "there is no such folder" in found.problems[0]
