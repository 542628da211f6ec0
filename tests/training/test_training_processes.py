"""Training with several processes that share each batch, as on several GPUs; here on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.subjects import outcome

SCRIPT = """
import sys
from pathlib import Path
from tests.training.subjects import fast, run
from dent.training import named
run(Path(sys.argv[1]) / "fast", fast(epochs=2))
run(Path(sys.argv[1]) / "trades", named("trades", epochs=1, steps=2, batch_size=32))
"""

INTERRUPTED = """
import sys
from pathlib import Path
from tests.training.subjects import StopError, fast, run, stop_at
from dent.training import loop, named
loop.CHECKPOINT_SECONDS = 0.0
for name, recipe in (
    ("fast", fast(epochs=2, batch_size=48)),
    ("trades", named("trades", epochs=2, steps=2, batch_size=48)),
):
    folder = Path(sys.argv[1]) / name
    run(folder / "whole", recipe)
    for step in (2, 3, 6):
        try:
            run(folder / "parts", recipe, progress=stop_at(step))
        except StopError:
            continue
        raise SystemExit("the training was not interrupted")
    run(folder / "parts", recipe)
"""


def launch(text: str, folder: Path, processes: int) -> None:
    """Run a script in several processes, with the output folder as its argument."""
    script = folder / "script.py"
    script.write_text(text)
    root = Path(__file__).parents[2]
    ran = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node",
         str(processes), str(script), str(folder / "out")],
        cwd=root,
        env={
            "PYTHONPATH": os.pathsep.join((str(root), os.environ.get("PYTHONPATH", ""))),
            "PATH": "/usr/bin:/bin",
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_resume_exactly_within_an_epoch(tmp_path: Path, processes: int) -> None:
    """Running statistics and counts differ between processes.

    The attack of TRADES uses the statistics. Three gradients have different sums in another order.
    """
    launch(INTERRUPTED, tmp_path, processes)
    for name in ("fast", "trades"):
        folder = tmp_path / "out" / name
        assert outcome(folder / "parts") == outcome(folder / "whole")


@pytest.mark.slow
def test_two_processes_train_one_model(tmp_path: Path) -> None:
    launch(SCRIPT, tmp_path, 2)
    for name, epochs in (("fast", 2), ("trades", 1)):
        folder = tmp_path / "out" / name
        spec = json.loads((folder / "run.json").read_text())["spec"]
        assert spec["processes"] == 2
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert [line["epoch"] for line in lines] == list(range(1, epochs + 1))
        assert all(0 < line["trained_correct"] <= 192 for line in lines)
        assert (folder / "last.safetensors").exists()
