"""Indicators of attack failure, from constructed records and in a run."""

from dataclasses import dataclass
from pathlib import Path
from typing import final

import pytest

from dent.attacks import PGD, Attack, Outcome, Querier
from dent.evaluation import Settings, evaluate, load_run
from dent.evaluation.records.consistency import of_record
from dent.evaluation.records.schema import AttackHistory, Trace, UnitRecord, UnitTiming
from dent.evaluation.results.attack_failure import curve_of, indicators_of
from dent.report import write_report
from dent.threat import ThreatModel
from tests.evaluation.subjects import Guess, Masked, Push, make_model, make_subject


def history(**changes: object) -> AttackHistory:
    values: dict[str, object] = {
        "gradients": (1, 3, 4),
        "broken": (0, 1, 2),
        "loss": (1.0, 2.0, 3.0),
        "norm": (0.5, 0.25, 0.0),
        "late": 0,
        "rising": 0,
        "silent": 0,
        "untransferred": 0,
    }
    return AttackHistory.model_validate(values | changes)


def record(went: AttackHistory | None, claimed: tuple[bool, ...], **changes: object) -> UnitRecord:
    values: dict[str, object] = {
        "kind": "attack",
        "defense": "d",
        "attack": "a",
        "batch": 0,
        "seed": 0,
        "served": (0,) * len(claimed),
        "trace": Trace(rows=0, entropy=None, sigma=None, status={}),
        "claimed": claimed,
        "gradients": (4,) * len(claimed),
        "zero_gradients": (0,) * len(claimed),
        "history": went,
        "timing": UnitTiming(total=0, attack=0, serve=0, static=None),
    }
    return UnitRecord.model_validate(values | changes)


def test_a_curve_sums_batches_and_keeps_the_last_values_of_those_that_ended() -> None:
    short = history(gradients=(1, 2), broken=(1, 1), loss=(4.0, 8.0), norm=(1.0, 1.0))
    curve = curve_of([record(history(), (True, True, False)), record(short, (True,))])
    assert curve is not None
    assert curve.gradients == (1, 2, 3, 4)
    assert curve.broken == (1, 1, 2, 3)
    assert curve.total == 4
    assert curve.loss == pytest.approx((1.75, 2.75, 3.5, 4.25))  # weighted by members, three to one
    assert curve.norm == pytest.approx((0.625, 0.625, 0.4375, 0.25))


def test_members_fooled_earlier_count_as_broken_over_the_whole_curve() -> None:
    idle = record(None, (True, True), carried=(True, True))
    part = record(
        history(broken=(1, 2, 3)), (True, True, True, False), carried=(True, *(False,) * 3)
    )
    curve = curve_of([idle, part])
    assert curve is not None
    assert curve.broken == (3, 4, 5)
    assert curve.total == 6


def test_records_without_a_history_have_no_curve_and_no_indicators() -> None:
    assert curve_of([record(history(), (True,)), record(None, (True,))]) is None
    assert curve_of([record(None, (True,))]) is None
    assert indicators_of([record(None, (True,))]) == ()


@pytest.mark.parametrize(
    ("changes", "of_record", "raised"),
    [
        ({}, {}, None),
        ({"silent": 1}, {}, "silent success"),
        ({"rising": 1}, {}, "incomplete optimization"),
        ({"late": 1}, {}, "incomplete optimization"),
        ({"untransferred": 1}, {}, "transfer failure"),
        ({}, {"zero_gradients": (0, 0, 1)}, "unavailable gradients"),
        ({}, {"zero_gradients": (4, 4, 0)}, None),  # of fooled members
    ],
)
def test_each_sign_raises_its_own_indicator(
    changes: dict[str, object], of_record: dict[str, object], raised: str | None
) -> None:
    found = indicators_of([record(history(**changes), (True, True, False), **of_record)])
    assert [item.name for item in found] == [
        "unavailable gradients",
        "silent success",
        "incomplete optimization",
        "transfer failure",
    ]
    assert [item.name for item in found if item.raised] == ([] if raised is None else [raised])


@final
@dataclass(frozen=True)
class Wanders(Attack):
    """Queries adversarial images, but returns the natural images."""

    def run(self, target: Querier, threat: ThreatModel, seed: int) -> Outcome:
        outcome = Push(strength=1.0).run(target, threat, seed)
        del outcome
        return Outcome(target.natural, target(target.natural).argmax(dim=1) != target.labels)


def test_a_run_and_its_report_contain_curves_and_indicators(tmp_path: Path) -> None:
    model = make_model()
    attacks = [PGD(iterations=10), Wanders(name="wanders"), Guess()]
    subject = make_subject({"masked": Masked(model)}, attacks, model=model)
    result = evaluate(subject, Settings(n=8, batch_size=4), out=tmp_path / "run")
    by_name = {each.attack: each for each in result.defenses["static"].attacks}
    pgd = by_name["pgd"]
    assert pgd.curve is not None
    assert pgd.curve.gradients[-1] == 10
    assert pgd.curve.broken[-1] == pgd.curve.total - pgd.served.correct
    assert not any(item.raised for item in pgd.indicators if item.name != "incomplete optimization")
    raised = {item.name for item in by_name["wanders"].indicators if item.raised}
    assert "silent success" in raised
    assert by_name["guess"].curve is None
    assert by_name["guess"].indicators == ()
    masked = result.defenses["masked"].attack("pgd")
    assert "unavailable gradients" in {item.name for item in masked.indicators if item.raised}
    assert not {"silent success"} & {item.name for item in result.defenses["static"].diagnostics}

    assert load_run(tmp_path / "run").result == result
    for kind in ("html", "md"):
        page = tmp_path / f"report.{kind}"
        write_report([tmp_path / "run"], page)
        assert "did not return the images" in page.read_text()
    text = (tmp_path / "report.html").read_text()
    assert "static: broken by number of gradients" in text
    assert f"{pgd.curve.broken[-1]} of 8 broken after 10 gradients" in text


@pytest.mark.parametrize(
    "changes",
    [
        {"broken": (2, 1, 2)},
        {"broken": (0, 1, 9)},
        {"gradients": (1, 1, 2)},
        {"loss": (1.0,)},
        {"loss": (1.0, 1.0, 1e13)},
        {"silent": 9},
    ],
)
def test_an_impossible_attack_history_is_found_inconsistent(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    subject = make_subject({}, [PGD(iterations=4)])
    evaluate(subject, Settings(n=4, batch_size=4), out=tmp_path / "run")
    run = load_run(tmp_path / "run")
    unit = next(each for each in run.units() if each.kind == "attack")
    assert unit.history is not None
    assert not list(of_record(run.run.spec, run.plan, unit))
    wrong = unit.model_copy(update={"history": history(**changes)})
    assert list(of_record(run.run.spec, run.plan, wrong))
