"""Verification: any tampering is found, and by the check that is responsible for it."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dent import Dent, DentConfig
from dent.attacks import Attack, make
from dent.evaluation import Progress, Settings, Subject, evaluate, load_run, verify
from dent.evaluation.records.journal import JOURNAL
from dent.evaluation.records.record_file import dump
from dent.evaluation.records.shard import Shard
from dent.evaluation.results.verdict import RULES
from dent.evaluation.verification.reattack import Reattack
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
from tests.evaluation.test_evaluation_by_attack import subject as by_attack


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


def edit_units(folder: Path) -> None:
    run = json.loads((folder / "run.json").read_text())
    run["units"] -= 1
    (folder / "run.json").write_text(json.dumps(run))


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
    "no sigma where nothing smooths, checksum forged": (
        lambda f: relabel(f, lambda r: r["trace"].update(sigma=[]), ATTACK),
        r"served: attack/0/static/nudge: sigma has another length",
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
    "the number of units": (
        edit_units,
        r"records: .*run.json says 28 units, the plan has 29",
    ),
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


def test_forged_gradient_certificates_and_huge_eps_results_are_found(tmp_path: Path) -> None:
    subject = make_subject(attacks=[make("adaptive-unrolled", iterations=1)])
    evaluate(subject, Settings(n=8, batch_size=8), out=tmp_path / "run")
    assert verify(tmp_path / "run", subject).status == "verified"
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    for forge in (forge_certificate, forge_huge_eps):
        relabel(tmp_path / "run", forge, 1)
    relabel(tmp_path / "other", drop_huge_eps, 1)
    found = [*verify(tmp_path / "run", subject).problems]
    found += verify(tmp_path / "other", subject).problems
    for message in (
        "probes: probe/0/dent/None has another gradient certificate now",
        r"probes: probe/0/dent/None: under the huge eps, \d of 8 members",
        "probes: .* are correct now, recorded as nothing was attacked",
    ):
        assert any(re.search(message, problem) for problem in found), (message, found)


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


def recorded_elsewhere(subject: Subject, path: Path) -> Path:
    """Evaluate in batches of 100, with records that claim another number of threads."""
    evaluate(subject, Settings(batch_size=100, transfer=False), out=path)
    run = json.loads((path / "run.json").read_text())
    for session in run["sessions"]:
        session["threads"] += 7
    (path / "run.json").write_text(json.dumps(run))
    (path / "result.json").write_bytes(dump(load_run(path).result))
    return path


def edit_units(folder: Path, change: Callable[[dict[str, Any], list[int]], None]) -> None:
    """Change every natural and attack unit, given its labels, and write a matching result."""
    batches = json.loads((folder / "plan.json").read_text())["batches"]

    def edit(record: dict[str, Any]) -> None:
        if record["kind"] in ("natural", "attack"):
            change(record, batches[record["batch"]]["labels"])

    forge_all(folder, edit)
    (folder / "result.json").write_bytes(dump(load_run(folder).result))


def failed_checks(folder: Path, subject: Subject) -> dict[str, tuple[str, ...]]:
    checks = verify(folder, subject).checks
    return {check.name: check.problems for check in checks if check.state == "failed"}


def flip_both(record: dict[str, Any], labels: list[int]) -> None:
    """Make one more member correct for the defense, and one more wrong for the static model."""
    ours = record["defense"] == "it"
    if not ours and record["kind"] == "natural":
        return
    for member, (served, label) in enumerate(zip(record["served"], labels, strict=True)):
        if (served == label) != ours:
            record["served"][member] = label if ours else (label + 1) % 4
            return


def test_static_model_elsewhere_may_only_change_near_ties(tmp_path: Path) -> None:
    def masked() -> Subject:
        return make_subject({"it": Masked(make_model())}, [Push(0.5)], size=400)

    folder = recorded_elsewhere(masked(), tmp_path / "run")
    assert failed_checks(folder, masked()) == {}
    before = load_run(folder).result.defenses["it"].difference
    edit_units(folder, flip_both)
    after = load_run(folder).result.defenses["it"].difference
    assert before is not None
    assert after is not None
    assert (after.value or 0.0) == pytest.approx((before.value or 0.0) + 0.02)
    found = failed_checks(folder, masked())
    assert "and its logits are no near tie" in found["served"][0]
    assert any(
        "it: the difference to the static model is " in problem
        and "which is more than 4 members of 400 apart" in problem
        for problem in found["verdict"]
    )


@pytest.mark.parametrize(("margin", "failed"), [(0.0, False), (1e-5, False), (1.0, True)])
def test_flip_between_tied_logits_of_the_static_model_passes_elsewhere(
    tmp_path: Path, margin: float, failed: bool
) -> None:
    def tied() -> Subject:
        model = make_model()
        with torch.no_grad():
            model[-1].weight[1] = model[-1].weight[0]  # type: ignore[index]
            model[-1].bias[1] = model[-1].bias[0] - margin  # type: ignore[operator, index]
        return make_subject({"it": Wrapper(model)}, [Push(0.5)], size=400, model=model)

    folder = recorded_elsewhere(tied(), tmp_path / "run")
    flipped: list[int] = []

    def flip(record: dict[str, Any], labels: list[int]) -> None:
        if (record["kind"], record["defense"]) != ("natural", "static") or flipped:
            return
        pairs = enumerate(zip(record["served"], labels, strict=True))
        flipped.append(next(member for member, (served, label) in pairs if served == 0 != label))
        record["served"][flipped[0]] = 1

    edit_units(folder, flip)
    assert flipped
    assert ("served" in failed_checks(folder, tied())) == failed


def test_changes_elsewhere_that_all_favor_the_defense_are_found(tmp_path: Path) -> None:
    def many() -> Subject:
        return make_subject({"it": Wrapper(make_model())}, [Push()], size=1600)

    honest = recorded_elsewhere(many(), tmp_path / "run")
    both = Path(shutil.copytree(honest, tmp_path / "both"))

    def flip(record: dict[str, Any], labels: list[int], *, right: bool) -> None:
        if (record["kind"], record["defense"]) == ("attack", "it"):
            pairs = enumerate(zip(record["served"], labels, strict=True))
            member = next(each for each, (now, label) in pairs if (now == label) != right)
            record["served"][member] = labels[member] if right else (labels[member] + 1) % 4

    edit_units(honest, partial(flip, right=True))
    found = failed_checks(honest, many())
    assert len(found["served"]) == 1
    assert found["served"][0].startswith(
        "it: of 16 samples with other predictions, 16 are correct more often as recorded"
    )
    edit_units(both, lambda record, labels: flip(record, labels, right=record["batch"] % 2 == 0))
    assert failed_checks(both, many()) == {}


def test_the_result_of_a_part_does_not_fail_a_run_that_went_on_and_was_interrupted(
    tmp_path: Path,
) -> None:
    def stop(state: Progress) -> None:
        if state.done >= 8:
            raise KeyboardInterrupt

    subject = make_subject()
    evaluate(subject, SMALL, out=tmp_path, shard=Shard(1, 3))
    with pytest.raises(KeyboardInterrupt):
        evaluate(subject, SMALL, out=tmp_path, progress=stop)
    verified = verify(tmp_path)
    check = next(check for check in verified.checks if check.name == "result")
    assert (verified.status, check.state) == ("incomplete", "not-run")
    assert "is from before the last session" in check.problems[0]
    # A run that says it is complete must have the result of all of its records.
    run = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps(run | {"status": "complete"}))
    assert next(each for each in verify(tmp_path).checks if each.name == "result").problems
    assert verify(tmp_path).status == "failed"


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
    expected = "not-run" if follows and rules is not None else "failed"
    assert check.state == expected, check.problems


@pytest.mark.parametrize(
    ("rules", "hint"), [(4, f"rules {RULES}, so"), (99, ": upgrade torch-dent")]
)
def test_rulings_by_other_rules_never_pass(folder: Path, rules: int, hint: str) -> None:
    plain = json.loads((folder / "result.json").read_text())
    plain["rules"], plain["defenses"]["dent"]["diagnostics"] = rules, []
    (folder / "result.json").write_text(json.dumps(plain))
    check = next(check for check in verify(folder).checks if check.name == "result")
    assert (check.state, hint in check.problems[0]) == ("not-run", True)


@pytest.mark.parametrize("name", ["sentence", "spec", "interval"])
def test_result_of_a_defense_with_the_name_of_a_field_is_compared(
    tmp_path: Path, name: str
) -> None:
    evaluate(make_subject({name: Wrapper(make_model())}), SMALL, out=tmp_path)
    plain = json.loads((tmp_path / "result.json").read_text())
    plain["defenses"][name]["natural"]["correct"] += 1
    for rules in (plain["rules"], 1):
        plain["rules"] = rules
        (tmp_path / "result.json").write_text(json.dumps(plain))
        assert f"defenses.{name}.natural.correct" in " ".join(verify(tmp_path).problems)


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
        return make_subject(model=model)
    if what == "data":
        return replace(subject, dataset=make_dataset(seed=1))
    return replace(subject, defenses={"dent": Dent(subject.model, DentConfig(steps=3, lr=0.01))})


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("weights", "subject: model.weights"),
        ("data", "subject: dataset.digest"),
        (
            "defense",
            "subject: defenses.dent.config.settings.steps: the folder has 2, this run has 3",
        ),
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
    assert "does not exist" in found.problems[0]


class TwoFaced(Wrapper):
    """Serves another class if gradients are on."""

    def predict(self, x: Tensor, adaptation: Any) -> Tensor:
        logits = super().predict(x, adaptation)
        return logits.roll(1, dims=1) if torch.is_grad_enabled() else logits


def forge_all(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Edit every record of a run, and update checksums and result."""
    for line in range(len((folder / JOURNAL).read_text().splitlines())):
        relabel(folder, change, line)
    (folder / "result.json").write_bytes(dump(load_run(folder).result))


def as_older(record: dict[str, Any]) -> None:
    """Remove what older versions did not record."""
    if record["kind"] == "probe":
        record["calls"] = None
    elif record["kind"] != "certificate":
        record.update(views={}, apart={})


def test_records_without_other_answers_are_incomplete(tmp_path: Path) -> None:
    subject = make_subject({"it": TwoFaced(make_model())}, [Push()])
    evaluate(subject, Settings(n=8, batch_size=8, transfer=False), out=tmp_path)
    assert verify(tmp_path, subject).status == "verified"
    forge_all(tmp_path, as_older)
    found = verify(tmp_path, subject)
    states = {check.name: check.state for check in found.checks}
    assert (found.status, states["served"], states["probes"]) == ("incomplete", *["not-run"] * 2)


def test_run_by_attack_cannot_pass_as_one_of_an_older_version(tmp_path: Path) -> None:
    """Older versions did not record other answers, but never ran attack by attack either."""
    subject = by_attack(TwoFaced)
    evaluate(subject, Settings(n=8, batch_size=8), out=tmp_path)
    assert verify(tmp_path, subject).status == "verified"
    forge_all(tmp_path, as_older)
    found = verify(tmp_path, subject)
    states = {check.name: check.state for check in found.checks}
    assert (found.status, states["served"]) == ("failed", "failed")


def test_missing_loss_or_share_of_eps_is_found(folder: Path) -> None:
    def remove(record: dict[str, Any]) -> None:
        if record["kind"] == "attack":
            record.update(loss=None, used=None)

    forge_all(folder, remove)
    found = verify(folder, make_subject()).problems
    assert "served: attack/0/dent/push: the loss is not as recorded" in found
    assert "threat model: attack/0/dent/push does not say which share of eps it uses" in found


class Keeping(Wrapper):
    """Keeps all images in a memory that its copies share."""

    store: dict[bytes, int] = {}  # noqa: RUF012 (shared on purpose)

    def predict(self, x: Tensor, adaptation: Any) -> Tensor:
        self.store |= {image.detach().numpy().tobytes(): 0 for image in x}
        return super().predict(x, adaptation)


def test_hidden_memory_of_copies_is_found(tmp_path: Path) -> None:
    Keeping.store.clear()
    subject = make_subject({"it": Keeping(make_model())}, [Push()])
    evaluate(subject, Settings(n=8, batch_size=8, transfer=False), out=tmp_path)
    assert verify(tmp_path, subject).status == "verified"  # its memory is full already
    for shares, status in ((False, "failed"), (None, "incomplete")):

        def forge(record: dict[str, Any], shares: bool | None = shares) -> None:
            if record["kind"] == "probe" and record["defense"] == "it":
                record["shares"] = shares

        forge_all(tmp_path, forge)
        Keeping.store.clear()
        found = verify(tmp_path, subject)
        assert found.status == status
        hidden = "probes: probe/0/it/None: copies share a memory now, recorded as none"
        assert found.problems == ((hidden,) if shares is False else ())


def test_reattack_without_a_tensor_that_attacks_build_on_is_no_crash(tmp_path: Path) -> None:
    subject = by_attack()
    for tensors, state in (("drop", "not-run"), ("keep", "failed")):
        out = tmp_path / tensors
        settings = Settings(n=8, batch_size=8, until="end", tensors=tensors)  # type: ignore[arg-type]
        evaluate(subject, settings, out=out)
        if tensors == "keep":
            tensor_of(out).unlink()
        found = verify(out, subject, reattack=Reattack())
        check = next(check for check in found.checks if check.name == "attacks")
        assert (check.state, found.attacks) == (state, "some re-run")
        *_, last = (problem for problem in check.problems if problem != "and 1 more")
        assert "cannot be attacked again: " in last


def test_certificate_without_its_probe_is_a_problem_and_no_crash(tmp_path: Path) -> None:
    evaluate(by_attack(), Settings(n=8, batch_size=8, until="end"), out=tmp_path)
    lines = (tmp_path / JOURNAL).read_text().splitlines(keepends=True)
    mine = '"defense":"it"'
    kept = [line for line in lines if '"kind":"probe"' not in line or mine not in line]
    (tmp_path / JOURNAL).write_text("".join(kept))
    found = verify(tmp_path, by_attack())
    assert "probes: certificate/0/it/None comes before the probe of its defense" in found.problems


def test_gradients_alone_are_not_taken_for_state(tmp_path: Path) -> None:
    subject = make_subject({"it": TwoFaced(make_model())}, [Push()])
    result = evaluate(subject, Settings(n=8, batch_size=8, transfer=False), out=tmp_path)
    raised = {each.name for each in result.defenses["it"].raised}
    assert "served differs with gradients" in raised
    assert "carries state" not in raised


class Steep(Wrapper):
    """Scales the logits far beyond what a record may hold."""

    def predict(self, x: Tensor, adaptation: Any) -> Tensor:
        return super().predict(x, adaptation) * 1e25


@pytest.mark.parametrize("attack", [Push(), make("apgd-ce", iterations=3)])
def test_run_of_a_defense_with_huge_logits_can_be_verified(tmp_path: Path, attack: Attack) -> None:
    subject = make_subject({"it": Steep(make_model())}, [attack])
    evaluate(subject, Settings(n=8, batch_size=8), out=tmp_path)
    assert verify(tmp_path, subject).problems == ()


def test_run_with_a_tiny_eps_can_be_verified(tmp_path: Path) -> None:
    subject = make_subject({}, [make("pgd")], eps="0.000001")
    evaluate(subject, Settings(n=8, batch_size=8), out=tmp_path)
    assert verify(tmp_path, subject).problems == ()
