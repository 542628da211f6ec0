"""Training with several processes that share each batch, as on several GPUs; here on the CPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys
from pathlib import Path
from tests.training.subjects import fast, run
from dent.training import named
run(Path(sys.argv[1]) / "fast", fast(epochs=2))
run(Path(sys.argv[1]) / "trades", named("trades", epochs=1, steps=2, batch_size=32))
"""


@pytest.mark.slow
def test_two_processes_train_one_model(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    root = Path(__file__).parents[2]
    ran = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
         str(script), str(tmp_path / "out")],
        cwd=root,
        env={"PYTHONPATH": str(root), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    for name, epochs in (("fast", 2), ("trades", 1)):
        folder = tmp_path / "out" / name
        spec = json.loads((folder / "run.json").read_text())["spec"]
        assert spec["processes"] == 2
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert [line["epoch"] for line in lines] == list(range(1, epochs + 1))
        assert all(0 < line["trained_correct"] <= 192 for line in lines)
        assert (folder / "last.safetensors").exists()
