"""Runs of the whole suite: attack by attack, on members that are still correct, until decided."""

import json
import re
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dent import Dent, DentConfig
from dent.attacks import Defense, make
from dent.evaluation import (
    Settings,
    Subject,
    challenge,
    describe,
    evaluate,
    load_run,
    suite,
    verify,
)
from dent.evaluation.attack_kinds import kind_of_attack
from dent.evaluation.records.plan import Unit, candidates, groups, make_plan, rounds, units
from dent.evaluation.records.schema import JournalRecord, UnitRecord
from dent.evaluation.records.spec import STATIC, EvaluationSpec
from dent.evaluation.results.decision import can_gain, decisions, superfluous, units_left
from dent.evaluation.results.intervals import tango
from dent.evaluation.results.power import detectable_gain
from dent.evaluation.results.recorded_run import RecordedRun
from dent.evaluation.results.scoring import piece_of
from dent.evaluation.results.summary import summarize
from dent.evaluation.suites import named_suite
from dent.storage.canonical import canonical, digest
from dent.threat import ThreatModel
from tests.attacks.known_defenses import Identity
from tests.distributed.fake_pool import evaluate_by_fakes
from tests.evaluation.test_evaluation_suite_answers import EPS, dataset, linear

ROOT = Path(__file__).parents[2]
BATCH = 8
QUICK = Settings(n=2 * BATCH, batch_size=BATCH)
TO_THE_END = Settings(n=2 * BATCH, batch_size=BATCH, until="end")


class Shifted(Identity):
    """Answers as its model does, except that the logit of the first class is slightly higher."""

    def predict(self, x: torch.Tensor, adaptation: Any) -> torch.Tensor:
        return super().predict(x, adaptation) + torch.tensor([0.2, 0.0, 0.0, 0.0])


class Declared(Identity):
    """Declares that its answers depend on the batch."""

    batch_dependent = True


def subject(
    defense: Callable[[nn.Module], Defense] = Shifted, model: nn.Module | None = None
) -> Subject:
    model = model or linear()
    return Subject(model, dataset(), {"it": defense(model)}, suite(), ThreatModel("linf", EPS))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run that stopped when it was decided."""
    out = tmp_path_factory.mktemp("runs") / "decided"
    evaluate(subject(), QUICK, out=out)
    return out


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the same run without an early stop."""
    out = tmp_path_factory.mktemp("runs") / "end"
    evaluate(subject(), TO_THE_END, out=out)
    return out


def spec_of(**how: Any) -> EvaluationSpec:
    return describe(subject(**how), QUICK)


def test_only_a_whole_suite_with_a_static_model_runs_by_attack() -> None:
    assert spec_of().schedule == "by-attack"
    other = Subject(linear(), dataset(), {}, suite()[:3], ThreatModel("linf", EPS))
    assert describe(other, QUICK).schedule == "by-batch"
    assert describe(subject(), Settings(static=False, transfer=False)).schedule == "by-batch"
    # So specifications equal those that older versions recorded.
    assert "schedule" not in describe(other, QUICK).to_json()
    assert "until" not in describe(other, QUICK).to_json()["settings"]


def test_attacks_that_are_equal_on_the_static_model_run_on_it_once() -> None:
    spec = spec_of()
    plan = make_plan(QUICK, dataset())
    on_static = [
        unit.attack for unit in units(spec, plan) if (unit.kind, unit.defense) == ("attack", STATIC)
    ]
    names = [entry.name for entry in spec.attacks]
    assert set(on_static) == set(names) - set(spec.same_on_static)
    assert {"adaptive-truncated", "adaptive-bpda", "gmsa-avg", "gmsa-min"} <= set(
        spec.same_on_static
    )
    assert not set(spec.same_on_static.values()) & set(spec.same_on_static)
    transfers = [unit.attack for unit in units(spec, plan) if unit.kind == "transfer"]
    assert set(transfers) == set(on_static)


def test_defenses_without_steps_run_attacks_redundant_on_static_models_last() -> None:
    """On them, attacks on the adaptation cost more than plain attacks, and find little."""
    names = [attack.name for attack in suite()]
    model = nn.Sequential(nn.BatchNorm2d(3), linear()).eval()
    cases: list[tuple[Defense, bool]] = [
        (model, True),
        (Dent(model, DentConfig(steps=0)), True),
        (Dent(model, DentConfig(steps=1)), False),
        (Identity(model), False),  # does not say how many steps it takes
    ]
    for defense, without in cases:
        spec = spec_of(model=model, defense=lambda _, made=defense: made)
        got = [entry.name for entry in spec.attacks]
        same = spec.same_on_static
        ordered = [name for name in names if name not in same] + [*filter(same.get, names)]
        assert got == (ordered if without else names)
        assert [name for name in got if name not in same] == ordered[: -len(same)]
        assert named_suite(spec) == ("dynamic", "small")


def test_rounds_attack_the_static_model_first_and_then_run_one_attack_each() -> None:
    for defense in (Identity, Declared):
        spec, plan = spec_of(defense=defense), make_plan(QUICK, dataset())
        order = list(units(spec, plan))
        assert len({unit.key for unit in order}) == len(order)
        by_round = list(rounds(spec, plan))
        assert [unit for groups_of in by_round for group in groups_of for unit in group] == order
        assert {unit.defense for group in by_round[1] for unit in group} == {STATIC}
        distinct = [entry.name for entry in spec.attacks if entry.name not in spec.same_on_static]
        assert len(distinct) > 2
        assert {unit.attack for group in by_round[2] for unit in group} == {None, distinct[0]}
        ran = [
            {(unit.kind, unit.attack, unit.batch) for group in groups_of for unit in group}
            for groups_of in by_round[3:-1]
        ]
        stages = [
            *(("transfer", name) for name in distinct[1:]),
            *(("attack", entry.name) for entry in spec.attacks),
        ]
        assert [{each for each in units_of if each[0] != "assembled"} for units_of in ran] == [
            {(kind, attack, batch.index)} for kind, attack in stages for batch in plan.batches
        ]
        assert {unit.kind for group in by_round[-1] for unit in group} == {"certificate"}
        # A shard has whole batches, because earlier units decide which members are left out.
        assert {unit for group in groups(spec, plan) for unit in group} == set(order)
        per_batch = [group for group in groups(spec, plan) if group[0].kind == "natural"]
        assert [group[0].batch for group in per_batch] == [batch.index for batch in plan.batches]
        for batch in plan.batches:
            assert candidates(spec, "it", spec.attacks[-1].name)[-1] == (
                "attack",
                spec.attacks[-1].name,
            )
            assembled = [u for u in order if u.kind == "assembled" and u.batch == batch.index]
            assert len(assembled) == (1 if defense is Identity else len(spec.attacks) + 1)


@pytest.mark.parametrize("total", [3, 7, 12])
def test_the_tango_lower_end_never_rises_when_the_defense_loses_a_member(total: int) -> None:
    """Early stopping relies on this: more attacks can only lower the lower end of the interval."""
    for only_defended in range(total + 1):
        for only_static in range(total + 1 - only_defended):
            low, _ = tango(only_defended, only_static, total)
            if only_defended:
                assert tango(only_defended - 1, only_static, total)[0] <= low + 1e-9
            if only_defended + only_static < total:
                assert tango(only_defended, only_static + 1, total)[0] <= low + 1e-9


def test_can_gain_per_batch_allows_for_an_exchange_of_members() -> None:
    def gains(only_ours: int, only_theirs: int, *, by_sample: bool) -> bool:
        both = 64 - only_ours - only_theirs
        ours = (1.0,) * only_ours + (0.0,) * only_theirs + (1.0,) * both
        theirs = (0.0,) * only_ours + (1.0,) * (64 - only_ours)
        return can_gain({0: ours}, {0: theirs}, by_sample=by_sample)

    assert not gains(6, 5, by_sample=True)
    assert not gains(6, 5, by_sample=False)
    assert not gains(10, 5, by_sample=True)
    assert not gains(9, 5, by_sample=False)  # at best, another submission leaves 3 against 0
    assert gains(10, 5, by_sample=False)  # here it leaves 4 against 0, which is a gain
    assert tango(3, 0, 64)[0] <= 0 < tango(4, 0, 64)[0]
    assert gains(12, 0, by_sample=True)


@pytest.mark.parametrize("seed", range(20))
def test_can_gain_per_batch_agrees_with_brute_force_over_all_outcomes(seed: int) -> None:
    """The oracle tries all outcomes: each of three batches stays or gets fewer correct members."""
    draw = np.random.default_rng(seed)
    size = 8
    theirs = {index: tuple(float(draw.random() < 0.4) for _ in range(size)) for index in range(3)}
    more = draw.choice((0.6, 0.8, 0.9))
    ours = {
        index: tuple(float(draw.random() < (0.5 if right else more)) for right in rights)
        for index, rights in theirs.items()
    }
    ends = [
        {_discordant(now, rights)}
        | {
            _discordant(other, rights)
            for other in product((0.0, 1.0), repeat=size)
            if sum(other) < sum(now)
        }
        for now, rights in zip(ours.values(), theirs.values(), strict=True)
    ]
    totals = {tuple(map(sum, zip(*end, strict=True))) for end in product(*ends)}
    expected = any(tango(only_ours, less, 3 * size)[0] > 0 for only_ours, less in totals)
    assert can_gain(ours, theirs, by_sample=False) == expected


def _discordant(ours: Sequence[float], theirs: Sequence[float]) -> tuple[int, int]:
    pairs = list(zip(ours, theirs, strict=True))
    return sum(a > b for a, b in pairs), sum(a < b for a, b in pairs)


def test_a_decided_run_can_be_challenged(folder: Path, tmp_path: Path) -> None:
    path = Path(copytree(folder, tmp_path / "run"))
    before = load_run(path).result.defenses["it"]
    images = subject().dataset.batch(list(range(load_run(path).plan.attacked)))[0]
    np.save(tmp_path / "images.npy", images.numpy())  # a challenge that fools no member
    natural = challenge(path, subject(), tmp_path / "images.npy", by="Ada")
    after = natural.result.defenses["it"]
    assert (natural.summaries["it"].lowered, after.worst.served) == (0, before.worst.served)
    assert after.decided == before.decided
    assert after.verdict == before.verdict
    # A challenge to the static model raises the difference, but cannot cause a robust gain.
    eps = subject().threat.eps
    np.save(tmp_path / "dark.npy", (images - eps).clamp(min=0).numpy())
    found = challenge(path, subject(), tmp_path / "dark.npy", by="Grace", defense="static")
    assert set(found.summaries) == {"static", "it"}
    assert found.result.status == "complete"
    assert found.result.defenses["it"].verdict is not None
    assert found.result.defenses["it"].verdict.ruling != "robust gain"
    assert verify(path).problems == ()


def test_a_run_stops_once_no_gain_is_possible(folder: Path, complete: Path) -> None:
    stopped, full = load_run(folder), load_run(complete)
    result = stopped.result
    assert result.status == stopped.run.status == "complete"
    assert result.units_done == len(stopped.records) < stopped.run.units
    found = result.defenses["it"]
    assert found.decided is not None
    assert found.decided.of == len(stopped.run.spec.attacks)
    assert found.decided.after < found.decided.of
    assert found.verdict is not None
    assert found.verdict.ruling == "no gain"
    assert "at most" in found.verdict.sentence
    assert found.difference is not None
    assert found.difference.value == found.decided.at_most
    said = {
        (name, each.name): each.sentence
        for name, defense in result.defenses.items()
        for each in defense.diagnostics
        if each.state == "not-run"
    }
    for name in (STATIC, "it"):
        assert said[name, "gradient certificate"].startswith("The run stopped before it")
    assert said["it", "black-box beats white-box"].startswith("The run stopped before it")
    assert said[STATIC, "transfer beats white-box"].startswith("The static model is the source")
    # In the complete run, the difference is not higher, and the verdict is the same.
    end = full.result.defenses["it"]
    assert (end.decided, full.run.status) == (None, "complete")
    assert end.difference is not None
    assert (end.difference.value or 0) <= found.decided.at_most
    assert end.verdict is not None
    assert end.verdict.ruling == "no gain"
    assert len(full.records) == full.run.units
    # The units that both runs recorded have equal records.
    for key, record in stopped.records.items():
        other = full.records[key].to_json()
        assert {**record.to_json(), "timing": 0} == {**other, "timing": 0}


@pytest.mark.parametrize(("batches", "sizes"), [(3, [1, 1, 1]), (8, [1] * 8), (20, [3] * 6 + [2])])
def test_an_attack_on_the_defenses_has_up_to_8_rounds_in_the_order_of_the_batches(
    batches: int, sizes: list[int]
) -> None:
    spec, plan = spec_of(), make_plan(QUICK, dataset())
    one = plan.batches[0]
    plan = plan.model_copy(
        update={"batches": tuple(one.model_copy(update={"index": at}) for at in range(batches))}
    )
    name = spec.attacks[0].name

    def attacked(*, in_parts: bool) -> list[list[int]]:
        found = [
            [unit.batch or 0 for group in groups_of for unit in group if unit.attack == name]
            for groups_of in rounds(spec, plan, in_parts=in_parts)
            if ("attack", "it", name)
            in {(u.kind, u.defense, u.attack) for g in groups_of for u in g}
        ]
        assert [batch for part in found for batch in part] == list(range(batches))
        return found

    assert [len(part) for part in attacked(in_parts=True)] == sizes
    assert len(attacked(in_parts=False)) == 1
    whole = [
        unit for part in rounds(spec, plan, in_parts=False) for group in part for unit in group
    ]
    assert whole == list(units(spec, plan))


def test_a_run_stops_between_the_batches_of_an_attack(complete: Path) -> None:
    run = load_run(complete)
    spec = run.run.spec.model_copy(update={"settings": QUICK})
    first = spec.attacks[0].name
    # Attacks on the static model break 6 of 16 members. The first on the defense breaks a batch.
    records: dict[str, Any] = {}
    for unit in units(spec, run.plan):
        record = run.records[unit.key]
        if isinstance(record, UnitRecord):
            labels = list(run.plan.batches[unit.batch or 0].labels)
            wrong = 0
            if unit.batch == 0 and unit.kind == "attack":
                wrong = 6 if unit.defense == STATIC else BATCH
            served = tuple(
                (label + 1) % 4 if at < wrong else label for at, label in enumerate(labels)
            )
            record = record.model_copy(update={"served": served, "views": {}})
        records[unit.key] = record
    order = list(units(spec, run.plan))
    at = order.index(Unit("attack", "it", first, 0))
    before = {unit.key: records[unit.key] for unit in order[:at]}
    assert decisions(spec, run.plan, before) == {}
    one = before | {order[at].key: records[order[at].key]}
    assert decisions(spec, run.plan, one)["it"].after == 0  # it has not run on every batch
    assert decisions(spec, run.plan, one)["it"].at_most == -2 / (2 * BATCH)
    assert not [unit for unit in units_left(spec, run.plan, one) if unit.defense == "it"]
    assert order[at + 1] == Unit("attack", "it", first, 1)
    both = one | {order[at + 1].key: records[order[at + 1].key]}
    assert decisions(spec, run.plan, both)["it"].after == 1


def test_attacks_with_the_published_protocol_count_as_attacks_before_a_stop(tmp_path: Path) -> None:
    published = make("apgd-ce", iterations=1, protocol="published", name="regrouped")
    attacks = [*suite(), published]
    defenses = {"it": Shifted(linear())}
    them = Subject(linear(), dataset(), defenses, attacks, ThreatModel("linf", EPS))
    evaluate(them, TO_THE_END, out=tmp_path / "run")
    run = load_run(tmp_path / "run")
    spec = run.run.spec.model_copy(update={"settings": QUICK})
    last = Unit("certificate", "it", None, 0).key
    records = {key: record for key, record in run.records.items() if key != last}
    assert decisions(spec, run.plan, records)["it"].after == len(attacks)


@pytest.mark.parametrize("row", ["tte", "dent+", "med-bn"])
def test_later_records_never_take_a_decision_back(row: str) -> None:
    """So a decision needs only a check of the last round. Checked on rows of the board."""
    run = load_run(ROOT / "board/cifar10-linf-8_255-v1" / row / "headline")
    spec, records, decided = run.run.spec, dict[str, Any](), list[bool]()
    for part in rounds(spec, run.plan):
        keys = [unit.key for group in part for unit in group]
        records |= {key: run.records[key] for key in keys if key in run.records}
        decided.append(bool(decisions(spec, run.plan, records)))
    assert decided == sorted(decided)
    assert not decided[0]
    assert decided[-1]


def test_decisions_are_derived_only_from_the_records(complete: Path) -> None:
    run = load_run(complete)
    spec = run.run.spec.model_copy(update={"settings": QUICK})
    order = list(units(spec, run.plan))
    records: dict[str, Any] = {}
    stopped_at = None
    for unit in order:
        if unit.defense in superfluous(spec, run.plan, records):
            stopped_at = stopped_at or unit
            continue
        records[unit.key] = run.records[unit.key]
    assert stopped_at is not None
    assert stopped_at.defense == "it"
    assert not units_left(spec, run.plan, records)
    first = decisions(spec, run.plan, records)
    assert first == decisions(spec, run.plan, records)
    assert decisions(run.run.spec, run.plan, records) == {}  # because of until="end"
    # Records after one that is missing do not count, and a randomized defense is never decided.
    missing = next(unit for unit in order if (unit.kind, unit.defense) == ("attack", "it"))
    gap = {key: record for key, record in run.records.items() if key != missing.key}
    assert decisions(spec, run.plan, gap)["it"].after == 0
    first_transfer = next(unit for unit in order if unit.kind == "transfer")
    one = records[first_transfer.key]
    assert isinstance(one, UnitRecord)
    drawn = records | {first_transfer.key: one.model_copy(update={"draws": (one.served,) * 4})}
    assert decisions(spec, run.plan, drawn) == {}
    # Later records count, too, up to the last completely recorded attack.
    last = [unit for unit in order if unit.kind == "attack" and unit.defense == "it"][-1]
    more = {key: record for key, record in run.records.items() if key != last.key}
    further = decisions(spec, run.plan, more)["it"]
    assert first["it"].after < further.after == len(spec.attacks) - 1
    assert further.at_most <= first["it"].at_most


def test_a_gradient_attack_without_members_left_is_not_a_black_box(complete: Path) -> None:
    run = load_run(complete)
    kinds = {entry.name: kind_of_attack(entry) for entry in run.run.spec.attacks}

    def carried_whole(record: JournalRecord) -> JournalRecord:
        if not isinstance(record, UnitRecord) or record.attack != "apgd-ce":
            return record
        nothing = {"queries": 0, "backwards": 0, "carried": (True,) * len(record.claimed or ())}
        return record.model_copy(update=nothing if record.kind == "attack" else {})

    records = {key: carried_whole(record) for key, record in run.records.items()}
    result = summarize(run.run.spec, run.plan, records, run.run.units, run.run.sessions)
    for defense in result.defenses.values():
        for each in defense.attacks:
            if each.kind == "attack" and each.batches:
                assert each.black_box == (kinds[each.attack or ""] == "black-box"), each.attack
        assert defense.attack("apgd-ce").had_nothing_left
        assert not defense.attack("adaptive-transfer").had_nothing_left


def test_fooled_members_keep_their_image_and_are_not_attacked_again(complete: Path) -> None:
    run = load_run(complete)
    kinds = {entry.name: kind_of_attack(entry) for entry in run.run.spec.attacks}
    carried = 0
    for unit in units(run.run.spec, run.plan):
        record = run.records[unit.key]
        if not isinstance(record, UnitRecord) or record.carried is None:
            continue
        batch = run.plan.batches[unit.batch or 0]
        rows = run.adversarial(record)
        for member in (m for m, left_out in enumerate(record.carried) if left_out):
            carried += 1
            assert piece_of(batch, record).attacked[member] == 0, "who fell once falls again"
            assert (record.claimed or ())[member]
            assert (record.gradients or ())[member] == 0
            sources = [
                earlier
                for earlier in map(run.records.get, (u.key for u in before(run, unit)))
                if isinstance(earlier, UnitRecord)
                and not piece_of(batch, earlier).attacked[member]
                and counts(unit, earlier, kinds)
            ]
            first = sources[0]
            natural, _ = dataset().batch(batch.positions)
            expected = natural if first.kind == "natural" else run.adversarial(first)
            assert rows[member].equal(expected[member])
    assert carried > 2 * BATCH


def before(run: RecordedRun, unit: Unit) -> list[Unit]:
    """Return the earlier units of the same defense and batch that may fool a member."""
    same = [
        u
        for u in units(run.run.spec, run.plan)
        if (u.defense, u.batch) == (unit.defense, unit.batch)
    ]
    earlier = same[: same.index(unit)]
    return [u for u in earlier if u.kind in ("natural", "transfer", "attack")]


def counts(unit: Unit, earlier: UnitRecord, kinds: dict[str, Any]) -> bool:
    """Return whether an attack leaves out the members that an earlier submission fooled."""
    mine = kinds[unit.attack or ""]
    if earlier.kind == "natural":
        return unit.defense != STATIC or mine != "transfer"
    if mine == "other" or (unit.defense == STATIC and mine == "black-box"):
        return True
    return bool(mine == ("transfer" if earlier.kind == "transfer" else kinds[earlier.attack or ""]))


@pytest.mark.parametrize("defense", [Declared])
def test_a_declared_batch_dependent_defense_is_scored_per_batch(defense: type[Identity]) -> None:
    out = evaluate(subject(defense), Settings(n=BATCH, batch_size=BATCH, until="end"))
    found = out.defenses["it"]
    assert found.worst.unit == "batch"


def test_a_stopped_run_can_be_verified_and_resumed(folder: Path) -> None:
    again = verify(folder, subject())
    assert again.status == "verified", again.problems
    before = (folder / "run.json").read_bytes()
    evaluate(subject(), QUICK, out=folder)
    assert (folder / "run.json").read_bytes() == before, "nothing was left to do"


def test_verify_tells_a_stopped_run_from_one_that_lost_records(
    folder: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    copytree(folder, copy)
    lines = (copy / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (copy / "journal.jsonl").write_bytes(b"".join(lines[:-1]))
    problems = verify(copy).problems
    assert any("missing" in problem for problem in problems), problems


def test_attack_kinds_are_not_compared_before_every_attack_ran_on_the_defense(
    complete: Path, tmp_path: Path
) -> None:
    copy = Path(copytree(complete, tmp_path / "copy"))
    lines = (copy / "journal.jsonl").read_text().splitlines(keepends=True)
    last = max(i for i, line in enumerate(lines) if '"gmsa-min"' in line)
    for count, compared in ((last + 1, False), (len(lines), True)):
        (copy / "journal.jsonl").write_text("".join(lines[:count]))
        found = load_run(copy).result.defenses["it"].diagnostics
        states = {each.name: (each.state, each.sentence) for each in found}
        for name in ("black-box beats white-box", "transfer beats white-box"):
            state, sentence = states[name]
            assert (state != "not-run") == compared
            assert compared or sentence.startswith("The run stopped before every attack")


def test_verify_finds_a_wrong_record_of_the_members_that_were_left_out(
    complete: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    copytree(complete, copy)

    lines = [json.loads(line) for line in (copy / "journal.jsonl").read_text().splitlines()]
    at = next(i for i, line in enumerate(lines) if any(line["record"].get("carried") or []))
    flags = lines[at]["record"]["carried"]
    lines[at]["record"]["carried"] = [not flag for flag in flags]
    lines[at]["sha256"] = digest(lines[at]["record"])
    text = "".join(f"{canonical(line)}\n" for line in lines)
    (copy / "journal.jsonl").write_text(text)
    problems = verify(copy, subject()).problems
    assert any("leaves out other members" in problem for problem in problems), problems


def test_an_interrupted_and_resumed_run_records_the_same_as_an_uninterrupted_one(
    folder: Path, tmp_path: Path
) -> None:
    class Stop(BaseException):
        pass

    expected = (folder / "journal.jsonl").read_text().splitlines()
    for after in (len(expected) // 2, len(expected) - 1):
        out = tmp_path / str(after)

        def stop(state: Any, after: int = after) -> None:
            if state.done >= after:
                raise Stop

        with pytest.raises(Stop):
            evaluate(subject(), QUICK, out=out, progress=stop)
        evaluate(subject(), QUICK, out=out)
        assert without_clocks(out) == without_clocks(folder)


def test_workers_record_the_same_as_one_process(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "workers"
    evaluate_by_fakes(subject(), QUICK, out)
    assert sorted(without_clocks(out)) == sorted(without_clocks(folder))


def without_clocks(folder: Path) -> list[str]:
    records = load_run(folder).records.values()
    return [json.dumps({**record.to_json(), "timing": 0}) for record in records]


def test_pages_state_the_gains_that_their_numbers_of_samples_can_show() -> None:
    root = Path(__file__).parents[2]
    names = ("README.md", "docs/evaluation/suite.md", "docs/tutorials/evaluate.md")
    readme, suite_page, tutorial = (
        " ".join((root / name).read_text(encoding="utf-8").split()) for name in names
    )
    shown = {
        samples: 100 * (detectable_gain(samples) or 0)
        for samples in (64, 128, 256, 512, 1024, 2048)
    }
    assert (
        f"| gain, points | {' | '.join(f'{gain:.1f}' for gain in shown.values())} |" in suite_page
    )
    assert f"256 bundled images, which show only gains of {shown[256]:.1f} points" in suite_page
    for page in (readme, tutorial):
        assert f"which show gains of {shown[1024]:.1f} points or more" in page
        assert re.search(rf"only (gains|one) of {shown[64]:.0f} points or more", page)
    least = next(samples for samples in range(1, 64) if detectable_gain(samples) is not None)
    assert f"would be shown in four of five runs: {least} or more." in suite_page


def test_detectable_gain_falls_with_more_samples_and_matches_a_simulation() -> None:
    gains = [detectable_gain(samples) for samples in (64, 256, 1024, 10_000)]
    assert all(gain is not None for gain in gains)
    assert gains == sorted(gains, reverse=True, key=lambda gain: gain or 0)
    assert detectable_gain(2) is None
    # Simulation: a gain of this size is found in about 80% of the runs.
    gain, samples, draws = detectable_gain(256) or 0, 256, torch.Generator().manual_seed(0)
    shares = torch.tensor([gain + 0.02, 0.02, 1 - gain - 0.04])
    found = 0
    for _ in range(400):
        drawn = torch.multinomial(shares, samples, replacement=True, generator=draws)
        found += tango(int((drawn == 0).sum()), int((drawn == 1).sum()), samples)[0] > 0
    assert 0.72 < found / 400 < 0.88


def test_the_suite_with_an_additional_attack_still_runs_by_attack() -> None:
    made = [*suite(), make("pgd", iterations=1)]
    spec = describe(Subject(linear(), dataset(), {}, made, ThreatModel("linf", EPS)), QUICK)
    assert spec.schedule == "by-attack"
    assert "pgd" not in spec.same_on_static.values()


def test_a_run_with_the_order_of_attacks_of_an_older_version_is_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [attack.name for attack in spec_of().attacks]
    with monkeypatch.context() as older:
        older.setattr("dent.evaluation.subject.takes_no_steps", lambda _: True)
        evaluate(subject(), QUICK, out=tmp_path)
    then = [attack.name for attack in load_run(tmp_path).run.spec.attacks]
    assert then != now
    assert sorted(then) == sorted(now)
    checked = verify(tmp_path, subject())
    assert [each.name for each in checked.checks if each.state == "failed"] == []
    assert next(each for each in checked.checks if each.name == "subject").state == "passed"
