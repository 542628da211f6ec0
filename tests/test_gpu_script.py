"""The scripts that `make gpu` runs also work without a GPU."""

import importlib
import json
import subprocess
import sys
import time
import zipfile
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from dent import data
from dent.adaptation import adapted_model
from dent.data.dataset import ArrayDataset
from dent.errors import DataError
from tests.pretended import ELSEWHERE, pretending

ROOT = Path(__file__).parents[1]
PARTS = ("tests", "bench", "train", "verdict")


def run(out: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, ROOT / "benchmarks/gpu.py", "--out", out, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")


def module(name: str) -> ModuleType:
    return importlib.import_module(name)


@pytest.mark.slow
def test_every_part_runs_with_small_settings_on_a_cpu(tmp_path: Path) -> None:
    first = run(tmp_path, "--device", "cpu", "--small")
    assert first.returncode == 0, first.stdout[-2000:] + first.stderr[-2000:]
    records = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in PARTS}
    for name, record in records.items():
        assert record["part"] == name
        assert record["small"] is True
        assert record["complete"] is True
        assert record["machine"]["device"].startswith("cpu")
        assert record["machine"]["versions"]["torch"] == version("torch")
        (sitting,) = record["sittings"]
        assert sitting["status"] == 0
        assert sitting["seconds"] > 0
    (cell,) = records["bench"]["cost"].values()
    for each in cell.values():
        assert each["static_forwards"] > 1
        assert each["milliseconds"] > each["static_milliseconds"] > 0
    assert cell["dent, 10 steps, default"]["apart"] < 1e-3
    assert cell["dent+, 6 steps, default"]["same_predictions"] == 1
    assert records["bench"]["left_out"] == []
    (training,) = records["train"]["trainings"].values()
    assert [epoch["epoch"] for epoch in training["epochs"]] == [1]
    pieces = [(tmp_path / name).read_bytes() for name in training["weights"]]
    assert b"".join(pieces) == (tmp_path / "train-fast-linf/best.safetensors").read_bytes()
    assert records["verdict"]["result"]["status"] == "complete"
    assert records["verdict"]["extrapolated"]["seconds"] > 0


@pytest.mark.usefixtures("scripts")
def test_a_bench_without_time_records_the_skipped_measurements(tmp_path: Path) -> None:
    job = module("gpu_job").Job("bench", torch.device("cpu"), tmp_path, 0.0, small=True)
    module("gpu_bench").run(job)
    record = json.loads((tmp_path / "bench.json").read_text())
    assert record["complete"] is False
    assert any("dent+, 6 steps, default" in name for name in record["left_out"])
    assert not any(record["cost"].values())


@pytest.mark.usefixtures("scripts")
def test_a_bench_records_no_uncompiled_figure_as_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def uncompiled(*_: object) -> torch.Tensor:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(adapted_model, "_compiled", lambda: uncompiled)
    deadline = time.monotonic() + 600
    job = module("gpu_job").Job("bench", torch.device("cpu"), tmp_path, deadline, small=True)
    bench = module("gpu_bench")
    figures: dict[str, dict[str, str]] = {}
    bench._measure(job, bench.SMALL[0], ("compiled",), figures)
    assert len(figures) == len(bench.DEFENSES)
    assert all(each["failed"].startswith("CompileWarning") for each in figures.values())


@pytest.mark.usefixtures("scripts")
def test_complete_parts_are_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in PARTS:
        (tmp_path / f"{part}.json").write_text('{"complete": true}')
    back = tmp_path / "back"
    back.mkdir()
    monkeypatch.setenv("OUT", str(back))
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(tmp_path)])
    assert module("gpu").main() == 0
    assert "all complete" in capsys.readouterr().out
    assert sorted(path.stem for path in back.iterdir()) == sorted(PARTS)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.usefixtures("scripts")
def test_a_missing_gpu_is_reported_with_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["gpu.py", "--run", "bench", "--minutes", "1", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", arguments)
    assert module("gpu").main() == 2
    assert "no GPU is here: try --device cpu --small" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("scripts")
def test_packed_sheets_unpack_to_the_same_dataset_or_report_missing_parts(tmp_path: Path) -> None:
    sheets = module("sheets")
    draws = np.random.default_rng(0)
    pixels = draws.integers(0, 256, (7_777, 4, 6, 3), dtype=np.uint8)
    labels = draws.integers(0, 10, 7_777)
    limit = 500_000
    parts = sheets.pack(pixels, labels, tmp_path / "sheets", limit=limit)
    assert len(parts) == 2
    for part in parts:
        assert sum(path.stat().st_size for path in part.glob("*.png")) <= limit
    found = sheets.unpack(tmp_path / "sheets")
    assert np.array_equal(found[0], pixels)
    assert np.array_equal(found[1], labels)
    (parts[0] / "part.json").unlink()
    with pytest.raises(DataError, match="part 1 of 2 is missing"):
        sheets.unpack(tmp_path / "sheets")
    with pytest.raises(DataError, match="no part is there"):
        sheets.unpack(tmp_path)
    with pytest.raises(DataError, match="a part may have 1,000"):
        sheets.pack(pixels, labels, tmp_path / "sheets", limit=1000)


@pytest.mark.usefixtures("scripts")
def test_lighten_removes_only_large_files_from_a_wheel(tmp_path: Path) -> None:
    wheels = module("wheels")
    wheel = tmp_path / "some-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("some/__init__.py", "x = 1\n")
        file.writestr("some/weights.pt", bytes(2000))
    wheels.lighten(wheel, largest=1000)
    with zipfile.ZipFile(wheel) as file:
        assert file.namelist() == ["some/__init__.py"]
        assert file.read("some/__init__.py") == b"x = 1\n"
    content = wheel.read_bytes()
    wheels.lighten(wheel, largest=1000)
    assert wheel.read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == [wheel.name]


@pytest.mark.usefixtures("scripts")
def test_a_dataset_on_a_device_gives_the_same_batches() -> None:
    sample = data.load("cifar10-sample")
    assert isinstance(sample, ArrayDataset)
    there = module("gpu_parts").OnDevice(sample, torch.device("cpu"))
    assert len(there) == len(sample)
    assert (there.name, there.digest, there.classes) == (
        sample.name,
        sample.digest,
        sample.classes,
    )
    for positions in ([5, 3, 3, 255], list(range(256))):
        for found, expected in zip(there.batch(positions), sample.batch(positions), strict=True):
            assert torch.equal(found, expected)
            assert found.dtype == expected.dtype


@pytest.mark.slow
@pytest.mark.usefixtures("scripts")
@pytest.mark.parametrize(("part", "where"), [("bench", "gpu_bench"), ("verdict", "gpu_parts")])
def test_a_part_keeps_all_tensors_on_its_device(part: str, where: str, tmp_path: Path) -> None:
    with pretending():
        deadline = time.monotonic() + 3600
        job = module("gpu_job").Job(part, ELSEWHERE, tmp_path, deadline, small=True)
        getattr(module(where), "run" if part == "bench" else part)(job)
    assert job.done["complete"] is True, job.done
