"""Test evaluation on a real Ray cluster of local nodes, with killed workers and nodes."""

import os
import random
import re
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from dent import Dent, DentConfig
from dent.attacks import make
from dent.cli.app import main
from dent.distributed import Cluster, evaluate
from dent.evaluation import Progress, Settings, Subject, load_run
from dent.evaluation import evaluate as evaluate_here
from tests.distributed.toys import Meeting, Refusing, SlowPush, contents, kill
from tests.evaluation.subjects import Push, Remembering, make_model, make_subject

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="no Ray here: an extra")
TWO = Cluster(workers=2)
MEMORY = 100 * 2**20


class Nodes:
    """A local Ray cluster: a head without CPU cores, and nodes with one core each."""

    def __init__(self) -> None:
        import ray  # noqa: PLC0415 - an extra
        from ray.cluster_utils import Cluster as Local  # noqa: PLC0415

        small = {"object_store_memory": MEMORY, "include_dashboard": False}
        self._local = Local(initialize_head=True, head_node_args={"num_cpus": 0, **small})
        ray.init(address=self._local.address, log_to_driver=False)
        self._shutdown = ray.shutdown

    def add(self) -> Any:
        return self._local.add_node(num_cpus=1, object_store_memory=MEMORY)

    def remove(self, node: Any) -> None:
        """Kill all processes of a node."""
        self._local.remove_node(node, allow_graceful=False)

    def close(self) -> None:
        self._shutdown()
        self._local.shutdown()


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    patch = pytest.MonkeyPatch()
    patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    patch.setenv("RAY_worker_niceness", "0")  # else workers get low CPU priority
    found = Nodes()
    found.add()
    found.add()
    yield found
    found.close()
    patch.undo()


def killable(folder: Path) -> tuple[Subject, Settings]:
    """Twelve batches that each take some tenths of a second, so that a worker can be killed."""
    folder.mkdir()
    return make_subject(attacks=[SlowPush(folder), Push()], size=48), Settings(batch_size=4)


def workers(folder: Path, dead: Sequence[int] = ()) -> dict[int, str]:
    """Map the processes that ran an attack, without this one and `dead`, to their nodes."""
    ran = {int(file.name): file.read_text() for file in folder.iterdir()}
    return {pid: node for pid, node in ran.items() if pid not in {os.getpid(), *dead}}


def test_two_workers_record_the_same_as_one_process_bit_for_bit(
    nodes: Nodes, tmp_path: Path
) -> None:
    model = make_model()
    defenses = {"dent": Dent(model, DentConfig(steps=2, lr=0.01)), "online": Remembering(model)}
    published = make("apgd-ce", iterations=2, protocol="published")
    (tmp_path / "met").mkdir()
    attacks = [Push(0.5, name="nudge"), Meeting(tmp_path / "met", 2), published]
    subject = make_subject(defenses, attacks, model=model)
    settings = Settings(n=20, batch_size=8)
    evaluate_here(subject, settings, out=tmp_path / "one")

    def stop(state: Progress) -> None:
        if state.done == 6:  # in the middle of a batch
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_here(subject, settings, out=tmp_path / "many", progress=stop)
    states: list[Progress] = []
    evaluate(subject, settings, out=tmp_path / "many", cluster=TWO, progress=states.append)
    assert contents(tmp_path / "many") == contents(tmp_path / "one")
    one, *many = load_run(tmp_path / "many").run.sessions
    assert (one.outcome, one.units) == ("interrupted", 6)
    assert [(each.outcome, each.threads) for each in many] == [("complete", 1)] * 2
    assert (states[-1].done, states[-1].unit) == (states[-1].total, None)


def test_killed_worker_and_killed_node_lose_and_duplicate_no_records(
    nodes: Nodes, tmp_path: Path
) -> None:
    subject, settings = killable(tmp_path / "pids")
    node = nodes.add()
    at: list[int] = []

    def strike(state: Progress) -> None:
        ran = workers(tmp_path / "pids")
        elsewhere = [pid for pid, name in ran.items() if name != node.node_id]
        if not at and state.done >= 20 and elsewhere:
            kill(elsewhere[0])
            at.append(state.done)
        elif len(at) == 1 and state.done >= 50 and node.node_id in ran.values():
            nodes.remove(node)
            at.append(state.done)

    three, notices = Cluster(workers=3), list[str]()
    out = tmp_path / "many"
    evaluate(subject, settings, out=out, cluster=three, progress=strike, notice=notices.append)
    assert len(at) == 2
    evaluate_here(subject, settings, out=tmp_path / "one")
    assert contents(out) == contents(tmp_path / "one")
    ends = [session.outcome for session in load_run(out).run.sessions]
    assert ends.count("failed") == 2
    assert sum("A worker died during batch" in notice for notice in notices) == 2


@pytest.mark.slow
def test_repeatedly_killed_workers_lose_no_records(nodes: Nodes, tmp_path: Path) -> None:
    subject, settings = killable(tmp_path / "pids")
    killed: list[int] = []

    def strike(state: Progress) -> None:
        if state.done >= 15 * (len(killed) + 1):
            killed.append(random.choice(sorted(workers(tmp_path / "pids", killed))))  # noqa: S311
            kill(killed[-1])

    often = Cluster(workers=2, attempts=10)
    evaluate(subject, settings, out=tmp_path / "many", cluster=often, progress=strike)
    assert len(killed) >= 4
    evaluate_here(subject, settings, out=tmp_path / "one")
    assert contents(tmp_path / "many") == contents(tmp_path / "one")


def test_exception_of_an_attack_keeps_its_type_and_is_not_retried(
    nodes: Nodes, tmp_path: Path
) -> None:
    subject = make_subject(attacks=[Push(), Refusing(tmp_path / "asked")])
    with pytest.raises(ArithmeticError, match="cannot count"):
        evaluate(subject, Settings(n=4), out=tmp_path / "run", cluster=Cluster(workers=1))
    assert (tmp_path / "asked").read_text() == "x"
    run = load_run(tmp_path / "run")
    assert run.run.status == "failed"
    assert "attack/0/static/push" in run.records  # earlier records are kept


def test_command_line_records_the_same_on_a_cluster_as_in_one_process(
    nodes: Nodes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "own_distributed.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    asked = [
        *("dent", "evaluate", "--model", "own_distributed:small", "--iterations", "1", "--n", "8"),
        *("--batch-size", "4", "--defense", "dent+", "--defense", "own_distributed:Bare"),
    ]

    def run(*more: str) -> str:
        monkeypatch.setattr("sys.argv", [*asked, *more])
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr()
        assert not end.value.code, said.err
        return said.out + said.err

    many = run("--out", "many", "--workers", "1", "--ray")
    run("--out", "one", "--device", "cpu")
    assert contents(tmp_path / "many") == contents(tmp_path / "one")
    assert re.search(r"^\[(\d+)/\1\] done$", many, re.MULTILINE)
    assert re.search(r"^\[\d+/\d+\] attack .*  about \d+ seconds? left$", many, re.MULTILINE)
    assert "worst case" in many


OWN = """
import torch
from torch import nn

def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)).eval()

class Bare:
    batch_dependent = False
    def __init__(self, model): self.model = model
    def adapt(self, x): return None
    def predict(self, x, adaptation): return self.model(x)
"""
