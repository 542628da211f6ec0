"""Test the driver with fake workers that die or fail: records must equal those of one process."""

import pickle
import random
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from dent import Dent, DentConfig
from dent.attacks import make
from dent.distributed import Cluster, WorkerError
from dent.distributed import evaluate as evaluate_on_cluster
from dent.distributed.driver import drive
from dent.distributed.tasks import Task, Worker, pack, unpack
from dent.errors import ConfigError, InputError
from dent.evaluation import Progress, Settings, Subject, evaluate, load_run
from dent.evaluation.engine.progress import OnProgress
from dent.evaluation.probe import questions
from dent.evaluation.run import RemainingWork, evaluate_with
from dent.evaluation.subject import prepare
from tests.distributed.fake_pool import FakePool, evaluate_by_fakes
from tests.distributed.toys import Refusing, contents
from tests.evaluation.subjects import (
    SMALL,
    Leaky,
    Push,
    Remembering,
    Wrapper,
    make_model,
    make_subject,
)


@pytest.fixture(autouse=True, scope="module")
def _short_probes() -> Iterator[None]:
    """Reduce the probe queries to stateful defenses, in one process and in many alike."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(questions, "_MANY_CALLS", 2 * questions._FEW_CALLS)
        yield


def everything() -> tuple[Subject, Settings]:
    """A subject with every kind of unit and with a stateful defense."""
    model = make_model()
    defenses = {"dent": Dent(model, DentConfig(steps=2, lr=0.01)), "online": Remembering(model)}
    published = make("apgd-ce", iterations=2, protocol="published")
    return make_subject(defenses, [Push(0.5, name="nudge"), Push(), published], model=model), SMALL


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("single") / "run"
    evaluate(*everything(), out=folder)
    return contents(folder)


@settings(
    max_examples=4,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(seed=st.integers(0, 2**32), size=st.integers(1, 4), deadly=st.floats(0, 0.25))
def test_records_equal_those_of_one_process_whenever_workers_die(
    tmp_path_factory: pytest.TempPathFactory,
    single: dict[str, object],
    seed: int,
    size: int,
    deadly: float,
) -> None:
    folder = tmp_path_factory.mktemp("many") / "run"
    draw = random.Random(seed)  # noqa: S311
    lost: list[str] = []
    evaluate_by_fakes(
        *everything(),
        folder,
        size=size,
        seed=seed,
        dies=lambda _: draw.random() < deadly,
        attempts=10**6,
        notice=lost.append,
    )
    assert contents(folder) == single
    run = load_run(folder).run
    assert sum(session.units for session in run.sessions) == run.units
    ends = [session.outcome for session in run.sessions]
    assert ends.count("failed") >= len(lost)
    assert set(ends) <= {"complete", "failed"}


def test_one_process_and_many_workers_can_resume_each_others_run(
    tmp_path: Path, single: dict[str, object]
) -> None:
    def stop_at(count: int) -> OnProgress:
        def stop(state: Progress) -> None:
            if state.done >= count:
                raise KeyboardInterrupt

        return stop

    subject, chosen = everything()
    for count, many in ((8, False), (16, True), (23, False), (31, True)):
        run = partial(evaluate_by_fakes if many else evaluate, subject, chosen, out=tmp_path)
        with pytest.raises(KeyboardInterrupt):
            run(progress=stop_at(count))
        assert load_run(tmp_path).run.status == "interrupted"
    pools: list[FakePool] = []
    evaluate_by_fakes(subject, chosen, tmp_path, pools=pools)
    assert contents(tmp_path) == single
    # Of a batch that was started, only the missing units run.
    assert any(task.held for task in pools[0].tasks)
    assert not any({u.key for u in t.units} & {r.key for r, _ in t.held} for t in pools[0].tasks)


def test_run_fails_and_names_the_batch_if_it_kills_every_worker(tmp_path: Path) -> None:
    subject, notices = make_subject(), list[str]()

    def dies(task: Task | None) -> bool:
        return task is not None and (task.units[0].kind, task.units[0].batch) == ("natural", 1)

    with pytest.raises(WorkerError, match=r"3 workers died during batch 1, .*: out of memory"):
        evaluate_by_fakes(
            subject, SMALL, tmp_path / "run", size=1, dies=dies, notice=notices.append
        )
    assert (
        notices
        == ["A worker died during batch 1, which another worker takes over: out of memory"] * 2
    )
    run = load_run(tmp_path / "run")
    assert run.run.status == "failed"
    assert {record.batch for record in run.records.values()} == {0}
    evaluate_by_fakes(subject, SMALL, tmp_path / "run")
    evaluate(subject, SMALL, out=tmp_path / "single")
    assert contents(tmp_path / "run") == contents(tmp_path / "single")


def test_run_fails_if_workers_die_before_they_are_ready(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match="3 workers in a row died before they were ready: out of"):
        evaluate_by_fakes(make_subject(), SMALL, tmp_path, dies=lambda _: True)


def test_run_fails_and_names_the_missing_resources_if_no_worker_starts(tmp_path: Path) -> None:
    class Empty(FakePool):
        def wait(self, seconds: float) -> list[object]:  # type: ignore[override]
            del seconds
            return []

    def run_units(work: RemainingWork) -> None:
        drive(work, Empty(work, 1, lambda _: False), attempts=3, patience=0.01)

    with pytest.raises(WorkerError, match=r"no worker .* 1 CPU, and the cluster has 0 of 0 CPU"):
        evaluate_with(make_subject(), SMALL, run_units, out=tmp_path, progress=None, shard=None)


def test_attack_that_raises_is_not_retried(tmp_path: Path) -> None:
    subject = make_subject(attacks=[Push(), Refusing(tmp_path / "asked")])
    with pytest.raises(ArithmeticError, match="cannot count"):
        evaluate_by_fakes(subject, SMALL, tmp_path / "run", size=1)
    assert (tmp_path / "asked").read_text() == "x"
    assert load_run(tmp_path / "run").run.status == "failed"


def test_defense_with_state_that_cannot_be_reset_is_refused(tmp_path: Path) -> None:
    model = make_model()
    subject = make_subject({"leaky": Leaky(model)}, model=model)
    with pytest.raises(InputError, match=r"'leaky' depends on earlier queries.*reset\(\)"):
        evaluate_by_fakes(subject, SMALL, tmp_path)
    with pytest.raises(InputError, match="'leaky'"):  # also from the recorded probe
        evaluate_by_fakes(subject, SMALL, tmp_path)
    evaluate(subject, SMALL, out=tmp_path)  # one process may continue


def test_progress_counts_recorded_units_and_names_the_running_unit(tmp_path: Path) -> None:
    states: list[Progress] = []
    evaluate_by_fakes(make_subject(), SMALL, tmp_path, size=3, progress=states.append)
    counts = [state.done for state in states]
    assert counts == sorted(counts)
    assert (states[-1].done, states[-1].unit, states[-1].share) == (29, None, 1.0)
    assert all(0 <= state.share <= 1 for state in states)
    assert {state.unit.kind for state in states if state.unit} >= {"natural", "attack"}
    robust = load_run(tmp_path).result.defenses["dent"].worst
    assert states[-1].natural["dent"][1] == robust.served.total


class Locked(Wrapper):
    """Holds a generator, which cannot be pickled."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__(model)
        self.draw = (number for number in range(3))


def test_workers_share_all_batches_of_an_attack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed: dict[str, object] = {}
    monkeypatch.setattr(
        sys.modules["dent.distributed.evaluate"],
        "evaluate_with",
        lambda *_, **named: passed.update(named),
    )
    evaluate_on_cluster(make_subject(), out=tmp_path / "run")
    assert passed["in_parts"] is False


def test_defense_that_cannot_be_pickled_is_refused(tmp_path: Path) -> None:
    model = make_model()
    with pytest.raises(InputError, match=r"does not pickle .*generator"):
        evaluate_by_fakes(make_subject({"locked": Locked(model)}, model=model), SMALL, tmp_path)


class Changing(Wrapper):
    """Sets another `batch_dependent` when it is unpickled."""

    def __setstate__(self, state: dict[str, object]) -> None:
        super().__setstate__(state)
        self.batch_dependent = True


def test_defense_that_changes_when_it_is_unpickled_is_refused() -> None:
    model = make_model()
    subject = make_subject({"changing": Changing(model)}, model=model)
    prepared = prepare(subject, SMALL)
    with pytest.raises(InputError, match=r"changed on its way .*changing\.batch_dependent"):
        Worker().prepare(pack(prepared, pickle), "cpu", 1, "/no")


def test_defenses_still_share_the_model_after_unpacking_on_another_device() -> None:
    subject = make_subject()
    prepared = prepare(subject, SMALL)
    unpacked = unpack(pack(prepared, pickle), "meta")
    assert (unpacked.spec, unpacked.plan) == (prepared.spec, prepared.plan)
    there = unpacked.subject
    assert {tensor.device.type for tensor in there.model.state_dict().values()} == {"meta"}
    dent = there.defenses["dent"]
    assert isinstance(dent, Dent)
    assert next(dent.parameters()) is next(there.model.parameters())


def test_workers_drop_the_tensors_if_the_settings_say_so(tmp_path: Path) -> None:
    chosen = Settings(**{**SMALL.to_json(), "tensors": "drop"})
    evaluate_by_fakes(make_subject(), chosen, tmp_path / "run")
    evaluate(make_subject(), chosen, out=tmp_path / "single")
    assert contents(tmp_path / "run") == contents(tmp_path / "single")
    assert not contents(tmp_path / "run")["tensors"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"workers": 0}, "workers must be at least 1"),
        ({"cpus_per_worker": 0}, "cpus_per_worker must be at least 1"),
        ({"gpus_per_worker": -1}, "must not be negative"),
        ({"gpus_per_worker": 1.5}, "a fraction of 1 or a whole"),
        ({"address": "ray://host:10001"}, "Ray's client"),
    ],
)
def test_invalid_cluster_settings_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Cluster(**wrong)  # type: ignore[arg-type]


def test_room_of_a_cluster_is_limited_by_its_scarcest_resource() -> None:
    assert Cluster(cpus_per_worker=2).room({"CPU": 7.0}) == 3
    assert Cluster(gpus_per_worker=0.5).room({"CPU": 7.0, "GPU": 2.0}) == 4
    assert Cluster(gpus_per_worker=0.2).room({"CPU": 7.0, "GPU": 1.0}) == 5
    assert Cluster(gpus_per_worker=0.3).room({"CPU": 7.0, "GPU": 1.0}) == 3
    assert Cluster(gpus_per_worker=1).room({"CPU": 7.0}) == 0
    assert (Cluster().device, Cluster(gpus_per_worker=0.5).device) == ("cpu", "cuda")
