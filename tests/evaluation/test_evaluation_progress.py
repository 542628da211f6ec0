"""The progress of a run: the same accuracies as the verdict, and times from a simulated clock."""

import random
from collections.abc import Mapping
from dataclasses import replace

import pytest

from dent import Dent, DentConfig
from dent.attacks import make
from dent.evaluation import Settings, evaluate, load_run
from dent.evaluation.engine.progress import Passes, Tracker, passes_of
from dent.evaluation.records.plan import Unit, before_decision, units
from dent.evaluation.records.schema import JournalRecord, ProbeRecord
from dent.evaluation.records.spec import STATIC
from dent.evaluation.results.summary import summarize
from dent.evaluation.subject import Prepared, prepare
from tests.evaluation.subjects import Push, make_model, make_subject

FORWARD, ADAPTED = 1.0, 50.0
"""Simulated seconds of one pass of a batch: without and with adaptation."""
PROBE = 100.0
"""The factor by which a probe takes longer than its number of passes suggests."""


Run = tuple[Prepared, Mapping[str, JournalRecord]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of three equal batches and two attacks: mostly unadapted passes, and a short one."""
    model = make_model()
    defense = Dent(model, DentConfig(steps=2, lr=0.01))
    attacks = [make("gmsa-min", rounds=2, iterations=2), Push()]
    subject = make_subject({"it": defense}, attacks, model=model)
    settings = Settings(n=12, batch_size=4)
    out = tmp_path_factory.mktemp("progress") / "run"
    evaluate(subject, settings, out=out)
    return prepare(subject, settings), load_run(out).records


@pytest.mark.parametrize("dependent", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_progress_accuracies_match_the_summary_for_any_order_of_units(
    run: Run, dependent: bool, seed: int
) -> None:
    prepared, records = run
    spec, plan = prepared.spec, prepared.plan
    undeclared = (each.model_copy(update={"batch_dependent": False}) for each in spec.defenses)
    spec = spec.model_copy(update={"defenses": tuple(undeclared)})
    draw = random.Random(seed)  # noqa: S311
    todo = list(units(spec, plan))
    told = {}
    for unit in draw.sample(todo, len(todo)):  # in any order, as with several workers
        record = records[unit.key]
        if isinstance(record, ProbeRecord):
            told[unit] = moving(record, float(dependent and unit.defense != STATIC))
            continue
        served = tuple(draw.choice(plan.batches[unit.batch or 0].labels) for _ in record.served)
        told[unit] = record.model_copy(update={"served": served, "views": {}})
    tracker = Tracker(replace(prepared, spec=spec), todo)
    for unit, record in told.items():
        tracker.count(unit, record)
    found = summarize(
        spec, plan, {unit.key: record for unit, record in told.items()}, len(told), ()
    )
    state = tracker.state([], 0.0)
    assert found.defenses["it"].worst.unit == ("batch" if dependent else "sample")
    for name, each in found.defenses.items():
        assert state.natural[name] == (each.natural.correct, each.natural.total)
        assert state.robust[name] == (each.worst.served.correct, each.worst.served.total)


def moving(record: ProbeRecord, distance: float) -> ProbeRecord:
    """Return the probe with `distance` between batches, and 0 between repeated predictions."""
    far = record.repeated.model_copy(update={"distance": distance})
    still = record.repeated.model_copy(update={"distance": 0.0})
    others = {"alone": far, "strangers": far, "permuted": far}
    return record.model_copy(update={"repeated": still, "again": still, **others})


def seconds(unit: Unit, passes: Passes) -> float:
    """Return the simulated seconds of a unit."""
    longer = PROBE if unit.kind == "probe" else 1.0
    return longer * passes.seconds(FORWARD if unit.defense == STATIC else ADAPTED, FORWARD)


def timed(record: JournalRecord, taken: float) -> JournalRecord:
    """Return the record with `taken` as its total time."""
    static = None if record.timing.static is None else FORWARD
    timing = record.timing.model_copy(update={"total": taken, "static": static})
    return record.model_copy(update={"timing": timing})


def test_remaining_time_is_estimated_from_finished_units_and_not_from_the_probe(run: Run) -> None:
    prepared, records = run
    todo = list(units(prepared.spec, prepared.plan))
    tracker = Tracker(prepared, todo)
    passes = {unit: passes_of(prepared, unit) for unit in todo}
    assert any(found.static > found.adapted > 0 for found in passes.values())
    assert tracker.state([(todo[0], 0.0)], 0.0).remaining is None
    known, left = set[str](), sum(seconds(*each) for each in passes.items())
    for unit, found in passes.items():
        tracker.count(unit, timed(records[unit.key], seconds(unit, found)))
        left -= seconds(unit, found)
        known |= set() if unit.kind == "probe" else {unit.defense}
        if known == {STATIC, "it"}:  # each has a finished unit besides the probe
            state = tracker.state([], 0.0)
            assert (state.least, state.remaining) == pytest.approx((left, left), abs=1e-6), unit


def test_unequal_unit_times_give_a_range_for_the_remaining_time(run: Run) -> None:
    prepared, records = run
    todo = list(units(prepared.spec, prepared.plan))
    tracker = Tracker(prepared, todo)
    left = 0.0
    for unit in todo:
        taken = seconds(unit, passes_of(prepared, unit))
        if unit.batch == 2:
            left += taken
        else:  # the second batch was slower than the first
            tracker.count(unit, timed(records[unit.key], taken * (1.5 if unit.batch else 1.0)))
    last = todo[-1]
    state = tracker.state([(last, 0.0)], 0.0)
    assert (state.least, state.remaining) == pytest.approx((left, 1.5 * left))
    within = tracker.state([(last, 0.5)], 0.0)
    took = seconds(last, passes_of(prepared, last))
    assert within.least == pytest.approx(left - took / 2)


def test_time_to_the_decision_is_estimated_only_for_runs_that_may_stop_early(run: Run) -> None:
    prepared, records = run
    assert Tracker(prepared, list(units(prepared.spec, prepared.plan))).state([], 0.0).decision is (
        None
    )
    spec = prepared.spec.model_copy(update={"schedule": "by-attack"})
    by_attack = replace(prepared, spec=spec)
    first = before_decision(spec, prepared.plan)
    others = [unit for unit in first if unit.defense != STATIC]
    assert {unit.kind for unit in others} == {"probe", "natural", "transfer"}
    assert {unit.attack for unit in others} == {None, spec.attacks[0].name}
    todo = list(units(spec, prepared.plan))
    tracker = Tracker(by_attack, todo)
    left = sum(seconds(unit, passes_of(by_attack, unit)) for unit in first)
    for unit in first:
        taken = seconds(unit, passes_of(by_attack, unit))
        record = records.get(unit.key) or records["natural/it/0"]
        tracker.count(unit, timed(record, taken))
        left -= taken
        if unit.kind == "natural" and unit.defense == "it":
            state = tracker.state([], 0.0)
            assert state.decision == pytest.approx(left, abs=1e-6), unit
            assert state.remaining is not None
            assert state.remaining > state.decision
    assert tracker.state([], 0.0).decision == 0
    end = spec.model_copy(update={"settings": spec.settings.model_copy(update={"until": "end"})})
    assert Tracker(replace(prepared, spec=end), todo).state([], 0.0).decision is None
