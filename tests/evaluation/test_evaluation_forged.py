"""Forged records that agree with each other, and what finds them: nothing else repeats a field."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, final

import pytest
import torch
from torch import Tensor

from dent.attacks import Attack, Outcome, Querier, make
from dent.errors import ConfigError
from dent.evaluation import Reattack, Settings, describe, evaluate, load_run, verify
from dent.evaluation.attack_specs import attack_spec
from dent.evaluation.records.folder import RESULT, RUN
from dent.evaluation.records.journal import JOURNAL
from dent.evaluation.records.naming import attack_contradiction
from dent.evaluation.records.plan import Unit
from dent.evaluation.records.record_file import dump
from dent.evaluation.records.schema import FollowUp, GradientPoint, GradientRecord, ProbeRecord
from dent.evaluation.records.spec import AttackSpec
from dent.evaluation.results.result import EvaluationResult, OverViews
from dent.evaluation.verification.probes import _certified_less
from dent.evaluation.verification.tolerance import result_changes
from dent.storage.canonical import canonical, digest
from dent.storage.errors import RecordError
from dent.threat import ThreatModel
from tests.evaluation.subjects import Noisy, Push, Wrapper, make_model, make_subject
from tests.evaluation.test_evaluation_by_attack import QUICK
from tests.evaluation.test_evaluation_by_attack import subject as by_attack

Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def suite_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the suite, which stopped when it was decided."""
    path = tmp_path_factory.mktemp("forged") / "run"
    evaluate(by_attack(), QUICK, out=path)
    return path


def forged(folder: Path, out: Path, change: Change, *, result: bool = True) -> Path:
    """Return a copy of a run with changed records, right checksums, and the result that follows."""
    shutil.copytree(folder, out)
    lines = [json.loads(line)["record"] for line in (out / JOURNAL).read_text().splitlines()]
    for record in lines:
        change(record)
    text = (canonical({"record": record, "sha256": digest(record)}) for record in lines)
    (out / JOURNAL).write_text("".join(f"{line}\n" for line in text))
    (out / RESULT).unlink()
    if result:
        (out / RESULT).write_bytes(dump(load_run(out).result))
    return out


def removed(name: str) -> Change:
    """Return a change of attacks: the field is null, as in a record of an older version."""
    return lambda record: record.update({name: None}) if record["kind"] == "attack" else None


def test_members_that_an_attack_left_out_cannot_be_hidden(suite_run: Path, tmp_path: Path) -> None:
    """Without them, an attack that only had to break a few members seems to break all others."""
    hidden = forged(suite_run, tmp_path / "run", removed("carried"))
    found = verify(hidden, by_attack())
    assert found.status == "failed"
    assert all(
        problem.endswith("leaves out other members than those that had fallen before it")
        for problem in found.problems
        if not problem.endswith("more")
    )


@pytest.mark.parametrize("name", ["history", "planned"])
def test_reattack_finds_fields_that_somebody_removed(
    suite_run: Path, tmp_path: Path, name: str
) -> None:
    hidden = forged(suite_run, tmp_path / "run", removed(name))
    found = verify(hidden, by_attack(), reattack=Reattack(3, "nonce"))
    assert found.status == "failed"
    assert any(f"{name} not the same when attacked again" in each for each in found.problems)


@pytest.mark.parametrize("name", ["gradients", "zero_gradients"])
def test_a_run_of_the_suite_says_where_its_attacks_had_gradients(
    suite_run: Path, tmp_path: Path, name: str
) -> None:
    hidden = forged(suite_run, tmp_path / "run", removed(name), result=False)
    with pytest.raises(RecordError, match="for which members the attack had a gradient"):
        load_run(hidden)


def test_checks_of_the_certificate_are_not_read_from_a_probe(
    suite_run: Path, tmp_path: Path
) -> None:
    """A run that stopped early has no certificate, and showed those of a probe instead."""
    huge = FollowUp(attack="pgd", total=8, correct=0, before=None).to_json()

    def add(record: dict[str, Any]) -> None:
        if record["kind"] == "probe":
            record["huge_eps"] = huge

    with pytest.raises(RecordError, match="are recorded with the probe"):
        load_run(forged(suite_run, tmp_path / "run", add, result=False))


def test_attacks_with_more_iterations_cannot_be_removed(tmp_path: Path) -> None:
    subject = make_subject(attacks=[Push()])
    settings = Settings(n=8, batch_size=8, diagnostics="full")
    evaluate(subject, settings, out=tmp_path / "honest")

    def remove(record: dict[str, Any]) -> None:
        if record["kind"] == "probe":
            record["more_iterations"] = None

    with pytest.raises(RecordError, match="no attacks with more iterations are recorded"):
        load_run(forged(tmp_path / "honest", tmp_path / "run", remove, result=False))


class Solid(Wrapper):
    """Cannot be copied."""

    def __deepcopy__(self, memo: Any) -> "Solid":
        raise TypeError("solid")


class Steeper(Wrapper):
    """Its gradient, but not its answer, grows with every query."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.count = 0

    def predict(self, x: Tensor, adaptation: Any) -> Tensor:
        self.count += 1
        return super().predict(x.detach() + self.count * (x - x.detach()), adaptation)


@pytest.mark.parametrize(
    ("defense", "flag", "changes"),
    [
        (Solid, "cannot be copied", {"uncopied": None}),
        (Solid, "cannot be copied", {"calls": None}),
        (Steeper, "carries state", {"again_gradient": 0.0}),
        (Steeper, "carries state", {"again_gradient": None}),
    ],
)
def test_flags_of_a_run_without_a_verdict_cannot_be_hidden(
    tmp_path: Path, defense: type[Wrapper], flag: str, changes: dict[str, Any]
) -> None:
    """No ruling depends on them there, so no changed ruling would show it."""
    subject = make_subject({"it": defense(make_model())}, [Push()])
    evaluate(subject, Settings(n=8, batch_size=8), out=tmp_path / "honest")
    raised = {each.name for each in load_run(tmp_path / "honest").result.defenses["it"].raised}
    assert flag in raised
    assert verify(tmp_path / "honest", subject).status == "verified"

    def hide(record: dict[str, Any]) -> None:
        if (record["kind"], record["defense"]) == ("probe", "it"):
            record.update(changes)

    hidden = forged(tmp_path / "honest", tmp_path / "run", hide)
    assert flag not in {each.name for each in load_run(hidden).result.defenses["it"].raised}
    found = verify(hidden, subject)
    assert found.status != "verified"
    if "calls" not in changes:  # a run by batch without it is one of an older version
        assert "probes: probe/0/it/None is answered differently now" in found.problems


class TwoFaced(Wrapper):
    """Its logits differ if gradients are on."""

    def predict(self, x: Tensor, adaptation: Any) -> Tensor:
        logits = super().predict(x, adaptation)
        return logits * 1.05 + 0.1 * logits.roll(1, 1) if torch.is_grad_enabled() else logits


def test_answers_with_gradients_cannot_be_hidden_by_a_false_machine(tmp_path: Path) -> None:
    subject = make_subject({"it": TwoFaced(make_model())}, [Push()])
    evaluate(subject, Settings(n=8, batch_size=8), out=tmp_path / "honest")
    name_another_machine(tmp_path / "honest")
    kept = forged(tmp_path / "honest", tmp_path / "kept", lambda record: None)
    assert verify(kept, subject).status == "verified"

    def hide(record: dict[str, Any]) -> None:
        if record["defense"] == "it" and record["kind"] != "probe":
            record.update(apart={}, views={})

    hidden = forged(tmp_path / "honest", tmp_path / "run", hide)
    flags = {each.name for each in load_run(hidden).result.defenses["it"].raised}
    assert "served differs with gradients" not in flags
    found = verify(hidden, subject)
    assert found.status == "failed"
    assert any("it: answers lie apart now (with gradients)" in each for each in found.problems)


def name_another_machine(folder: Path) -> None:
    """Let a run say that it had another number of threads, which loosens the comparisons."""
    run = json.loads((folder / RUN).read_text())
    run["sessions"][0]["threads"] += 7
    (folder / RUN).write_text(json.dumps(run))


def equal_draws(folder: Path) -> Change:
    """Return a change of natural units: all draws are equal, with the same mean accuracy."""
    batches = json.loads((folder / "plan.json").read_text())["batches"]

    def change(record: dict[str, Any]) -> None:
        if not record.get("draws"):
            return
        labels, draws = batches[record["batch"]]["labels"], record["draws"]
        counts = [
            sum(draw[member] == label for draw in draws) for member, label in enumerate(labels)
        ]
        best = sorted(range(len(labels)), key=lambda member: -counts[member])
        kept = best[: round(sum(counts) / len(draws))]
        answer = [
            label if member in kept else (label + 1) % 4 for member, label in enumerate(labels)
        ]
        record["draws"] = [answer] * len(draws)

    return change


def test_draws_cannot_be_made_equal_with_a_false_machine(tmp_path: Path) -> None:
    """The mean stays, but nobody would gain by submitting the same image again."""
    subject = make_subject({"it": Noisy(make_model())}, [])
    evaluate(subject, Settings(n=40, batch_size=20), out=tmp_path / "honest")
    name_another_machine(tmp_path / "honest")
    kept = forged(tmp_path / "honest", tmp_path / "kept", lambda record: None)
    assert verify(kept, subject).status == "verified"
    hidden = forged(tmp_path / "honest", tmp_path / "run", equal_draws(kept))
    then, now = (load_run(each).result.defenses["it"].repeated for each in (kept, hidden))
    assert then is not None
    assert now is not None
    assert abs(then.natural - now.natural) < 0.03
    assert then.natural_risk[-1] > now.natural_risk[-1] + 0.1
    problem = "verdict: it: its resubmission risk without an attack is not as recorded"
    assert problem in verify(hidden, subject).problems


def test_difference_to_the_mean_over_views_may_not_move_either() -> None:
    result = evaluate(make_subject(attacks=[]), Settings(n=20, batch_size=20))
    ours = result.defenses["dent"]
    found = ours.difference
    assert found is not None

    def compared(value: float) -> EvaluationResult:
        difference = found.model_copy(update={"value": value})
        beside = OverViews(baseline="tte", views=6, difference=difference)
        changed = ours.model_copy(update={"over_views": beside})
        return result.model_copy(update={"defenses": {**result.defenses, "dent": changed}})

    assert list(result_changes(compared(0.0), compared(0.05))) == []
    (problem,) = result_changes(compared(0.1), compared(0.0))
    assert problem.startswith("dent: the difference to the mean over views is +10.00 points")


def test_the_name_of_the_checked_gradient_is_compared(tmp_path: Path) -> None:
    subject = make_subject(attacks=[make("adaptive-unrolled", iterations=1)])
    evaluate(subject, Settings(n=8, batch_size=8), out=tmp_path / "honest")

    def rename(record: dict[str, Any]) -> None:
        if (record["kind"], record["defense"]) == ("probe", "static"):
            record["gradient"]["rung"] = "unrolled"

    found = verify(forged(tmp_path / "honest", tmp_path / "run", rename), subject)
    says = "probes: probe/0/static/None: the checked gradient is plain, recorded as unrolled"
    assert found.problems == (says,)


def test_certificate_from_which_the_failing_point_was_removed_does_not_pass() -> None:
    exact = GradientPoint(members=2, errors=(0.0, 0.0), alike=1, same=2, of=2, coarse=(0.1, 0.1))
    wrong = exact.model_copy(update={"errors": (0.0, 0.9)})
    unit = Unit("certificate", "it", None, 0)

    def probe(*points: GradientPoint) -> ProbeRecord:
        gradient = GradientRecord(rung="plain", threshold=0.001, points=points)
        return ProbeRecord.model_construct(gradient=gradient)

    today = probe(exact, exact, wrong)
    (finding,) = _certified_less(unit, today, probe(exact, exact), today)
    assert finding.skipped
    assert list(_certified_less(unit, today, today, today)) == []
    (older, newer) = probe(exact, exact), probe(exact, exact, exact)
    assert list(_certified_less(unit, older, older, newer)) == []


@final
class Square(Attack):
    """An attack of somebody's own, which has the name of its class by default."""

    def run(self, target: Querier, threat: ThreatModel, seed: int) -> Outcome:
        del threat, seed
        return Outcome(target.natural, torch.zeros_like(target.labels, dtype=torch.bool))


def described(attack: Attack, name: str) -> AttackSpec:
    return attack_spec(replace(attack, name=name), ThreatModel("linf", "8/255"))


@pytest.mark.parametrize(
    ("attack", "name", "says"),
    [
        (make("pgd", iterations=1), "standard", "called 'standard' is pgd"),
        (make("pgd", iterations=1), "autoattack", "called 'autoattack' is pgd"),
        (Push(), "apgd-ce", "called 'apgd-ce' is .*Push"),
        (make("pgd", iterations=1), "pgd:iterations=100", "is pgd with iterations=1"),
        (make("apgd-ce", iterations=1), "pgd:iterations=1", "is apgd-ce"),
        (make("pgd", iterations=1), "pgd", None),
        (make("pgd", iterations=1), "pgd:iterations=1", None),
        (make("pgd", iterations=1), "quick", None),
        (make("zero-update"), "zero-update", None),
        (make("square"), "square:of_mine", None),
        (Square(), "square", None),
        (Square(), "apgd-ce", "called 'apgd-ce' is .*Square"),
    ],
)
def test_attack_with_the_name_of_another_known_attack_is_refused(
    attack: Attack, name: str, says: str | None
) -> None:
    problem = attack_contradiction(described(attack, name), "linf")
    subject = make_subject(attacks=[replace(attack, name=name)])
    if says is None:
        assert problem is None
        describe(subject, Settings(n=8))
        return
    with pytest.raises(ConfigError, match=says):
        describe(subject, Settings(n=8))


def test_attack_renamed_in_the_records_is_found_by_verify(tmp_path: Path) -> None:
    subject = make_subject({}, [make("pgd", iterations=1)])
    evaluate(subject, Settings(n=8, batch_size=8), out=tmp_path / "honest")
    assert verify(tmp_path / "honest", subject).status == "verified"
    shutil.copytree(tmp_path / "honest", tmp_path / "renamed")
    run = json.loads((tmp_path / "renamed" / RUN).read_text())
    run["spec"]["attacks"][0]["name"] = "standard"
    run["identity"] = digest(run["spec"])
    (tmp_path / "renamed" / RUN).write_text(json.dumps(run))

    def rename(record: dict[str, Any]) -> None:
        if record["attack"] is not None:
            record["attack"] = "standard"

    found = verify(forged(tmp_path / "renamed", tmp_path / "run", rename))
    assert any("names: the attack called 'standard' is pgd" in each for each in found.problems)
