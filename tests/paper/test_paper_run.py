"""Test the runner of the paper's tables: what it runs, the values it reads, and resuming."""

import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torchvision.models import ResNet, resnet18

from dent import Dent, DentConfig, models
from dent.attacks import make
from dent.cli.app import main
from dent.data import ArrayDataset, ImageDataset
from dent.evaluation import load_run, verify
from dent.evaluation.records.folder import RUN
from dent.evaluation.records.plan import Plan as Batches
from dent.evaluation.records.spec import EvaluationSpec
from dent.evaluation.results.recorded_run import RecordedRun
from dent.evaluation.results.scoring import Piece, Scores, label
from dent.paper import Judgement, PaperPlan, Table, run_plans, runner, summarize, summary
from dent.paper.claims import compare
from dent.paper.counts import by_sentence
from dent.paper.estimate import profile_forwards
from dent.paper.measure import APPROXIMATE, MeasuredCell, measure
from dent.paper.planning import RUNS, PlannedRun
from dent.paper.profile import count_flops, read_profile, run_profile
from dent.paper.runner import Loader
from dent.paper.scales import Chosen
from dent.paper.spec import Claim
from tests.paper.conftest import COLUMNS, NO_SUITE, OUT, TABLE, MakePlan


def recorded(plan: PaperPlan, key: str) -> RecordedRun:
    run = plan.cells[key].run
    assert run is not None
    return load_run(OUT / RUNS / run.folder)


class Relabelled(Loader):
    """Loads images whose labels are the predictions of the untrained model, except for two."""

    def dataset(self, name: str) -> ImageDataset:
        images = super().dataset(name)
        x, _ = images.batch(range(8))
        labels = tiny(x).argmax(dim=1)
        labels[:2] = (labels[:2] + 1) % 10
        pixels = x.mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
        return ArrayDataset("relabelled", "test", images.classes, pixels, labels.numpy())


def tiny(x: Tensor) -> Tensor:
    answers: Tensor = models.load("paper_model:make")(x)
    return answers.detach()


def test_values_of_the_cells_match_the_records_of_their_runs(make_plan: MakePlan) -> None:
    plan = make_plan(**NO_SUITE)
    assert len(plan.runs()) == 2  # static and dent; both rows share them
    assert run_plans([plan], OUT, Relabelled(torch.device("cpu"))) == {}
    result = summarize(plan, OUT)
    assert result.status == "complete"
    cells = {f"{cell.row}/{cell.column}": cell for cell in result.cells}

    static = recorded(plan, "small/static").result.defenses["static"]
    dent = recorded(plan, "small/dent")
    name = "dent-nominal_steps-2"
    found = dent.result.defenses[name]
    assert cells["small/natural"].count == static.natural
    worst = [0, 0]
    for kind, at in (("attack", 0), ("transfer", 1)):
        units = [unit for unit in dent.units() if unit.defense == name]
        for batch in dent.plan.batches:
            hits = [
                sum(a == b for a, b in zip(unit.served, batch.labels, strict=True))
                for unit in units
                if unit.batch == batch.index and unit.kind in (kind, "natural")
            ]
            assert len(hits) == 3
            worst[at] += min(hits)
    assert len({*worst, static.natural.correct}) == 3  # so that no value can be taken for another
    for column, correct in zip(("dent", "denied"), worst, strict=True):
        cell = cells[f"small/{column}"]
        assert cell.count is not None
        assert (cell.count.correct, cell.count.total) == (correct, 8)
        assert cell.value == pytest.approx(100 * correct / 8)
        assert set(cell.flags) >= {flag.name for flag in found.raised}
    assert cells["again/dent"].as_in == "small/dent"
    assert cells["again/dent"].stands_for == "again"
    assert cells["small/dent"].as_in is None
    one, other, breaks = result.judgements
    assert (one.published, other.as_in) == (30.0, "small/dent and small/static")
    assert breaks.measured == cells["small/static"].value


@pytest.mark.parametrize("rows", [["small", "again"], ["again", "small"]])
def test_worst_ruling_counts_if_comparisons_share_their_runs(
    finished: PaperPlan, make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch, rows: list[str]
) -> None:
    del finished
    judge = summary.judge

    def judged(table: Table, claim: Claim, cells: tuple[str, ...], *rest: Any) -> Judgement:
        ruling = "not reproduced" if cells[0] == "again/dent" else "reproduced"
        return judge(table, claim, cells, *rest).model_copy(update={"ruling": ruling})

    monkeypatch.setattr(summary, "judge", judged)
    plan = make_plan(**NO_SUITE, claims=[TABLE["claims"][0] | {"rows": rows}])
    result = summarize(plan, OUT)
    found = {each.cells[0]: each for each in result.judgements}
    assert found["again/dent"].as_in is None
    assert found["small/dent"].as_in == "again/dent and again/static"
    (sentence,) = by_sentence(result.judgements)
    assert sentence.says == "Dent improves."
    assert {name: count for name, count in sentence.rulings.items() if count} == {
        "not reproduced": 1
    }


def test_interrupted_runs_are_resumed_and_finished_runs_are_unchanged(
    make_plan: MakePlan, loader: Loader
) -> None:
    plan = make_plan(**NO_SUITE)
    seen: list[str] = []

    def stop(done: int, total: int, name: str, state: Any) -> None:
        assert total == 2
        seen.append(name)
        if done == 1 and state is not None and state.done == 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_plans([plan], OUT, loader, watch=stop)
    cut = summarize(plan, OUT)
    assert cut.status == "partial"
    assert {"measured", "partial"} >= {cell.state for cell in cut.cells if cell.column != "denied"}
    run_plans([plan], OUT, loader)
    assert summarize(plan, OUT).status == "complete"
    before = {path: path.read_bytes() for path in OUT.rglob("*.json")}
    run_plans([plan], OUT, loader)
    assert {path: path.read_bytes() for path in OUT.rglob("*.json")} == before
    sessions = recorded(plan, "small/dent").run.sessions
    assert [session.outcome for session in sessions] == ["interrupted", "complete"]


def test_command_of_a_cell_names_the_run_that_the_cell_is_read_from(
    finished: PaperPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.read_bytes() for path in OUT.rglob("run.json")}
    assert len(before) == 2
    for command in {cell.command for cell in summarize(finished, OUT).cells}:
        assert command is not None
        monkeypatch.setattr("sys.argv", shlex.split(command))
        with pytest.raises(SystemExit) as done:
            main()
        assert not done.value.code
    assert {path: path.read_bytes() for path in OUT.rglob("run.json")} == before
    for path in before:
        assert (path.parent / "report.html").is_file()


def test_finished_runs_can_be_verified(finished: PaperPlan, loader: Loader) -> None:
    for run in finished.runs():
        assert verify(OUT / RUNS / run.folder, loader.subject(run)).status == "verified"


def test_dynamic_suite_is_planned_and_has_no_result_before_its_run(make_plan: MakePlan) -> None:
    plan = make_plan()
    (run,) = plan.suites.values()
    assert (run.suite, run.samples, run.batch_size) == ("small", 2, 2)
    assert shlex.split(run.command(OUT))[-8:-2] == [
        *("--eps", "1/255", "--suite", "dynamic", "--budget", "small")
    ]
    (beside,) = summarize(plan, OUT).suite
    assert (beside.ruling, beside.worst) == (None, None)


@pytest.mark.slow
def test_result_of_the_dynamic_suite_is_the_verdict_of_its_run(
    make_plan: MakePlan, loader: Loader
) -> None:
    plan = make_plan()
    (run,) = plan.suites.values()
    only = replace(plan, cells={})
    run_plans([only], OUT, loader)
    (beside,) = summarize(plan, OUT).suite
    found = load_run(OUT / RUNS / run.folder).result.defenses["dent-nominal_steps-2"]
    assert found.verdict is not None
    assert (beside.ruling, beside.worst) == (found.verdict.ruling, found.worst.served)
    assert beside.difference == found.difference


@pytest.mark.slow
def test_suites_of_one_model_attack_the_static_model_once(
    make_plan: MakePlan, loader: Loader
) -> None:
    columns = [COLUMNS[1], COLUMNS[2], COLUMNS[3] | {"id": "other", "measure": "robust"}]
    columns[2]["defense"] = "dent-nominal steps=1"
    rows = [TABLE["rows"][0] | {"published": ["10.0", "40.0", "30.0"]}]
    suite = {"cells": ["small/dent", "small/other"]}
    plan = make_plan(columns=columns, rows=rows, suite=suite, claims=[], charts=[])
    run_plans([replace(plan, cells={})], OUT, loader)
    one, other = (load_run(OUT / RUNS / run.folder) for run in plan.suites.values())
    static = [unit for unit in one.units() if unit.defense == "static"]
    assert {"natural", "attack"} <= {unit.kind for unit in static}
    # Equal times of computation: the records are copies.
    assert static == [unit for unit in other.units() if unit.defense == "static"]
    assert one.result.defenses.keys() != other.result.defenses.keys()


def two_suites(make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch) -> tuple[PaperPlan, ...]:
    """Return two plans: a suite of one short attack on each of two defenses of a model."""
    monkeypatch.setattr(runner, "suite", lambda *_: (make("pgd", iterations=1),))
    columns = [COLUMNS[1], COLUMNS[2], COLUMNS[3] | {"id": "other", "measure": "robust"}]
    columns[2]["defense"] = "dent-nominal steps=1"
    rows = [TABLE["rows"][0] | {"published": ["10.0", "40.0", "30.0"]}]
    suite = {"cells": ["small/dent", "small/other"]}
    plan = make_plan(columns=columns, rows=rows, suite=suite, claims=[], charts=[])
    suites = plan.suites.items()
    return tuple(replace(plan, cells={}, suites={key: run}) for key, run in suites)


def of_suite(plan: PaperPlan) -> RecordedRun:
    (run,) = plan.suites.values()
    return load_run(OUT / RUNS / run.folder)


def on_static(plan: PaperPlan) -> list[Any]:
    return [unit for unit in of_suite(plan).units() if unit.defense == "static"]


def test_a_later_call_copies_the_records_of_the_static_model(
    make_plan: MakePlan, loader: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, later = two_suites(make_plan, monkeypatch)
    run_plans([first], OUT, loader)
    before = {path: path.read_bytes() for path in OUT.rglob("*") if path.is_file()}
    run_plans([later], OUT, loader)
    assert {"natural", "attack"} <= {unit.kind for unit in on_static(first)}
    assert on_static(later) == on_static(first)  # equal times of computation
    assert of_suite(later).run.status == "complete"
    run_plans([first, later], OUT, loader)
    assert {path: path.read_bytes() for path in before} == before


def test_only_a_finished_run_of_the_same_static_model_is_copied_from(
    make_plan: MakePlan, loader: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, later = two_suites(make_plan, monkeypatch)

    def stop(done: int, total: int, name: str, state: Any) -> None:
        if state is not None and state.done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_plans([first], OUT, loader, watch=stop)
    assert on_static(first)
    taken: list[Path | None] = []
    found = runner.find_static_part
    monkeypatch.setattr(
        runner, "find_static_part", lambda *parts: taken.append(found(*parts)) or taken[-1]
    )
    run_plans([later], OUT, Relabelled(torch.device("cpu")))  # beside the unfinished one
    (path,) = (OUT / RUNS / run.folder for run in later.suites.values())
    run_plans([first], OUT, loader)  # beside one of other images
    assert taken == [None, None]
    assert of_suite(first).run.status == "complete"
    shutil.rmtree(path)
    (OUT / RUNS / "broken-suite-0").mkdir()
    run_plans([later], OUT, loader)
    assert taken[2:] == [of_suite(first).path]


def test_attack_with_published_protocol_counts_the_samples_that_it_claims(
    make_plan: MakePlan, loader: Loader
) -> None:
    attacks = {"autoattack": {"ce": "apgd-ce:iterations=2,protocol=published"}}
    plan = make_plan({"attacks": attacks}, **NO_SUITE)
    run_plans([plan], OUT, loader)
    records = recorded(plan, "small/dent")
    (unit,) = [
        unit for unit in records.units() if unit.kind == "attack" and unit.defense != "static"
    ]
    assert unit.claimed is not None
    found = measure(plan.cells["small/dent"], records)
    assert found is not None
    assert APPROXIMATE in found.method
    static = measure(plan.cells["small/static"], recorded(plan, "small/static"))
    assert static is not None
    assert APPROXIMATE not in static.method
    assert APPROXIMATE in compare(found, static).method
    assert len(found.right) == 8
    ids = [at for batch in records.plan.batches for at in batch.ids]
    natural = measure(replace_measure(plan, "natural"), records)
    assert natural is not None
    assert found.right == {
        at: natural.right[at] and not fell for at, fell in zip(ids, unit.claimed, strict=True)
    }


def scored(monkeypatch: pytest.MonkeyPatch, wrong: dict[str, set[int]], **call: object) -> None:
    """Replace the scores of all records: in each submission, some places of each batch are wrong.

    Args:
        monkeypatch: The fixture.
        wrong: The wrong places, by the beginning of the submission's name, such as `attack/square`.
        call: Fields of the one record of an attack that took all batches in one call, if it did.
    """

    def piece(name: str, size: int) -> Piece:
        places = {place for prefix in wrong if name.startswith(prefix) for place in wrong[prefix]}
        return Piece(tuple(float(place not in places) for place in range(size)), (), missing=0)

    def scores(spec: EvaluationSpec, batches: Batches, _: Any) -> dict[str, Scores]:
        kinds = ("attack", "transfer")
        names = ["natural", *(label(kind, each.name) for kind in kinds for each in spec.attacks)]
        pieces = {
            name: {batch.index: piece(name, batch.size) for batch in batches.batches}
            for name in names
        }
        records: Any = dict.fromkeys(names, (SimpleNamespace(**call),) if call else ())
        found = Scores(pieces, records, None, tuple(pieces["natural"]))
        return {defense.name: found for defense in spec.defenses}

    monkeypatch.setattr("dent.paper.measure.score", scores)


def measured(plan: PaperPlan, column: str) -> MeasuredCell:
    found = measure(plan.cells[f"small/{column}"], recorded(plan, f"small/{column}"))
    assert found is not None
    return found


def test_static_model_is_scored_by_batch_against_a_batch_dependent_defense(
    finished: PaperPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of two attacks breaks another member of each batch of four, with and without defense."""
    scored(monkeypatch, {"attack/apgd-ce": {0}, "attack/square": {1}})
    static, defended = (measured(finished, column) for column in ("static", "dent"))
    assert (static.value, defended.value) == (50.0, 75.0)  # worst case by sample, and by batch
    assert (static.by_batch, defended.by_batch) == (False, True)
    assert compare(defended, static).value == compare(static, defended).value == 0
    assert "one submission for each batch" in compare(defended, static).method


def test_transfer_counts_one_submission_for_each_batch_and_no_natural_images(
    finished: PaperPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the attack made its images in one call, and regrouped them."""
    wrong = {"natural": {0}, "transfer/apgd-ce": {1, 2}, "transfer/square": {3}}
    scored(monkeypatch, wrong, batch=None, claimed=None)
    transferred = measured(finished, "denied")
    assert list(transferred.right.values()) == [True, False, False, True] * 2
    assert transferred.by_batch
    wrong |= {"attack/apgd-ce": {1, 2}, "attack/square": {3}}
    scored(monkeypatch, wrong, batch=None, claimed=None)
    assert measured(finished, "static").value == 0.0  # regrouped: by sample
    assert compare(transferred, measured(finished, "static")).value == 0


def test_transfer_of_a_published_attack_is_its_single_submission(
    make_plan: MakePlan, loader: Loader
) -> None:
    attacks = {"autoattack": {"ce": "apgd-ce:iterations=2,protocol=published"}}
    plan = make_plan({"attacks": attacks}, **NO_SUITE)
    run_plans([plan], OUT, loader)
    records = recorded(plan, "small/denied")
    (unit,) = [unit for unit in records.units() if unit.kind == "transfer"]
    labels = [truth for batch in records.plan.batches for truth in batch.labels]
    correct = [served == truth for served, truth in zip(unit.served, labels, strict=True)]
    assert list(measured(plan, "denied").right.values()) == correct


def test_static_model_may_be_read_from_the_run_of_a_defense(
    finished: PaperPlan, make_plan: MakePlan
) -> None:
    first, columns = TABLE["rows"][0] | {"published": ["10.0"]}, [{"id": "dent", "label": "DENT"}]
    rows = [
        first | {"id": "of-dent", "defense": "static", "from_row": "defended"},
        first | {"id": "defended", "defense": COLUMNS[2]["defense"]},
    ]
    plan = make_plan(**NO_SUITE, rows=rows, columns=columns, claims=[], charts=[])
    planned = plan.cells["of-dent/dent"]
    assert planned.run == plan.cells["defended/dent"].run == finished.cells["small/dent"].run
    of_static, defended = summarize(plan, OUT).cells
    static = recorded(finished, "small/dent").result.defenses["static"]
    assert of_static.count == static.worst.served
    assert (of_static.as_in, defended.as_in) == (None, None)
    assert of_static.run == defended.run


def replace_measure(plan: PaperPlan, what: Any) -> Any:
    planned = plan.cells["small/dent"]
    return replace(planned, cell=replace(planned.cell, measure=what))


def test_parts_of_an_attack_are_measured_cumulatively_or_separately(
    make_plan: MakePlan, loader: Loader
) -> None:
    columns = [
        {"id": "first", "label": "first", "through": "apgd-ce"},
        {"id": "both", "label": "both", "through": "square"},
        {"id": "square", "label": "square", "only": "square"},
        {"id": "fab", "label": "fab", "only": "fab"},
    ]
    row = TABLE["rows"][0] | {"defense": "static", "published": ["", "", "", ""]}
    changes = {"columns": columns, "rows": [row], "claims": [], "charts": [], **NO_SUITE}
    plan = make_plan(**changes)
    assert len(plan.runs()) == 1
    run_plans([plan], OUT, loader)
    first, both, square = (
        measure(plan.cells[f"small/{column}"], recorded(plan, f"small/{column}"))
        for column in ("first", "both", "square")
    )
    assert first is not None
    assert both is not None
    assert square is not None
    assert both.right == {at: first.right[at] and square.right[at] for at in first.right}
    left_out = summarize(plan, OUT).cells[3]
    assert (left_out.state, left_out.value) == ("not at this scale", None)
    assert "autoattack has no fab" in left_out.why


def test_sigma_and_relative_time_are_measured_per_batch(
    make_plan: MakePlan, loader: Loader
) -> None:
    measures = ("sigma-before", "sigma-after", "relative-time", "relative-time")
    columns = [
        {"id": f"c{at}", "label": what, "measure": what, "defense": COLUMNS[2]["defense"]}
        for at, what in enumerate(measures)
    ]
    columns[3]["defense"] = "static"
    row = TABLE["rows"][0] | {"published": ["", "", "7.2×", "1.0×"]}
    claim = {
        "id": "cost",
        "says": "It costs.",
        "kind": "factor",
        "factor": 1e6,
        "cells": ["small/c2"],
    }
    changes = {"columns": columns, "rows": [row], "claims": [claim], "charts": [], **NO_SUITE}
    plan = make_plan({"samples": 6, "batch_size": 1}, **changes)
    run_plans([plan], OUT, loader)
    result = summarize(plan, OUT)
    before, after, cost, static = result.cells
    assert before.value == pytest.approx(0.5)
    assert after.value is not None
    assert after.value != before.value
    natural = [unit for unit in recorded(plan, "small/c0").units() if unit.kind == "natural"]
    sigmas = sorted(
        unit.trace.sigma[0]
        for unit in natural
        if unit.defense != "static" and unit.trace.sigma is not None
    )
    assert len(sigmas) == 6
    assert after.interval == (sigmas[0], sigmas[-1])  # smallest and largest of six
    assert (static.value, static.unit) == (1.0, "×")
    assert cost.value is not None
    assert cost.value > 1
    (judged,) = result.judgements
    assert (judged.published, judged.ruling) == (7.2, "reproduced")


def test_missing_weights_stop_only_the_runs_that_need_them(
    make_plan: MakePlan, loader: Loader
) -> None:
    plan = make_plan(**NO_SUITE)
    absent = Chosen("resnet-26-4", Path("none.safetensors"), "cifar10-sample", "", "dent train ...")
    cells = {
        key: replace(cell, run=replace(cell.run, model=absent))
        if key == "small/dent" and cell.run
        else cell
        for key, cell in plan.cells.items()
    }
    missing = run_plans([replace(plan, cells=cells)], OUT, loader)
    ((folder, why),) = missing.items()
    assert folder.startswith("resnet-26-4-linf-1_255-dent-nominal_steps-2")
    assert "make them by\n  dent train ..." in why
    assert len(list(OUT.rglob(RUN))) == 2


def test_profile_counts_operations_times_rounds_and_resumes(make_plan: MakePlan) -> None:
    columns = [
        {"id": str(steps), "label": str(steps), "defense": text}
        for steps, text in ((0, "static"), (1, "dent steps=1"), (2, "dent steps=2"))
    ]
    rows = [
        {"id": what, "label": what, "measure": what, "published": ["", "", ""]}
        for what in ("seconds", "relative-time", "gflops", "relative-flops")
    ]
    profile = {"model": "resnet18", "classes": 10, "size": 32, "batch_size": 2, "rounds": 2}
    changes = {"columns": columns, "rows": rows, "claims": [], "charts": [], **NO_SUITE}
    plan = make_plan({"tables": {"tiny": {"leave_out": ["1"]}}}, profile=profile, **changes)
    assert plan.runs() == ()
    run_plans([plan], OUT)
    path = OUT / RUNS / plan.profile_folder
    record = read_profile(path)
    assert record is not None
    assert len(record.seconds) == 2
    assert set(record.flops) == set(record.seconds[0]) == {"0", "2"}
    cells = {f"{cell.row}/{cell.column}": cell for cell in summarize(plan, OUT).cells}
    ratios = sorted(round_["2"] / round_["0"] for round_ in record.seconds)
    assert cells["relative-time/2"].value == pytest.approx(sum(ratios) / 2)
    assert cells["relative-time/2"].interval is None  # two rounds are too few
    assert cells["gflops/0"].value == record.flops["0"] / 1e9
    assert cells["relative-flops/2"].value == record.flops["2"] / record.flops["0"]
    assert cells["relative-flops/1"].state == "not at this scale"
    assert run_profile(plan, path) == record
    # Two images and four rounds (warm-up, counting, two timed): a round costs 1 forward without
    # steps and 6 with two steps.
    assert profile_forwards(plan) == 2 * 4 * (1 + 6)
    longer = make_plan(
        {"tables": {"tiny": {"leave_out": ["1"]}}}, profile=profile | {"rounds": 3}, **changes
    )
    assert run_profile(longer, path).seconds[:2] == record.seconds


def test_warm_up_prediction_is_not_part_of_any_timed_round_of_a_profile(
    make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This includes the warm-up after a resume. The patched clock counts forwards as seconds."""
    forwards: list[nn.Module] = []

    def note(module: nn.Module, _: Any) -> None:
        if isinstance(module, ResNet):
            forwards.append(module)

    hook = register_module_forward_pre_hook(note)
    monkeypatch.setattr("dent.paper.profile.clock", lambda _: float(len(forwards)))
    columns = [{"id": "2", "label": "2", "defense": "dent steps=2"}]
    rows = [{"id": "seconds", "label": "s", "measure": "seconds", "published": [""]}]
    profile = {"model": "resnet18", "classes": 10, "size": 32, "batch_size": 2}
    changes = {"columns": columns, "rows": rows, "claims": [], "charts": [], **NO_SUITE}
    try:
        for rounds in (2, 3):
            plan = make_plan({}, profile=profile | {"rounds": rounds}, **changes)
            record = run_profile(plan, OUT / RUNS / "resumed")
            assert record.seconds == ({"2": 3.0},) * rounds
    finally:
        hook.remove()


def test_operations_grow_by_the_same_amount_with_every_step() -> None:
    model = resnet18(weights=None, num_classes=10).eval()
    x = torch.rand(2, 3, 32, 32)
    none, one, two, three = (
        count_flops(Dent(model, DentConfig(steps=steps)), x) for steps in range(4)
    )
    assert two - one == one - none == three - two > none
    # A step is a forward, and a backward that computes no gradients of the other weights.
    assert 1.5 * none < one - none <= 2 * none


def test_planned_run_is_written_as_a_dent_evaluate_command(make_plan: MakePlan) -> None:
    plan = make_plan()
    run = plan.cells["small/static"].run
    assert isinstance(run, PlannedRun)
    words = shlex.split(replace(run, mix=0.25).command(OUT))
    assert words[:2] == ["dent", "evaluate"]
    asked = dict(zip(words[2::2], words[3::2], strict=True))
    assert asked["--defense"] == "static"
    assert asked["--mix"] == "0.25"
    assert asked["--out"] == str(OUT / RUNS / replace(run, mix=0.25).folder)
    configured = plan.cells["small/dent"].run
    assert configured is not None
    path = configured.configuration(OUT)
    assert path == OUT / "defenses" / "dent-nominal_steps-2.json"
    assert json.dumps(str(path)).strip('"') in configured.command(OUT)
