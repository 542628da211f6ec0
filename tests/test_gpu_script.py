"""The scripts that `make gpu` runs also work without a GPU."""

import importlib
import json
import subprocess
import sys
import tarfile
import time
import zipfile
from importlib.metadata import version
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dent import data, training
from dent.adaptation import adapted_model
from dent.data.dataset import ArrayDataset
from dent.errors import DataError
from tests.pretended import ELSEWHERE, pretending

ROOT = Path(__file__).parents[1]
PARTS = ("tests", "bench", "verdict", "train")


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
    trained = load_file(tmp_path / "train-fast-linf/best.safetensors")
    for name, values in load_file(tmp_path / training["weights"]).items():
        assert torch.equal(values, trained[name].to(values.dtype))
    assert records["tests"]["files"]["tests/test_golden.py"]["passed"] > 0
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
@pytest.mark.usefixtures("scripts", "own_precision")
@pytest.mark.parametrize(
    ("part", "where"), [("bench", "gpu_bench"), ("verdict", "gpu_parts"), ("train", "gpu_parts")]
)
def test_a_part_keeps_all_tensors_on_its_device(
    part: str, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = training.accelerator("cpu", "no")
    monkeypatch.setattr(type(handle), "device", ELSEWHERE)
    monkeypatch.setattr(training, "accelerator", lambda _: handle)
    with pretending():
        deadline = time.monotonic() + 3600
        job = module("gpu_job").Job(part, ELSEWHERE, tmp_path, deadline, small=True)
        getattr(module(where), "run" if part == "bench" else part)(job)
    assert job.done["complete"] is True, job.done


@pytest.mark.usefixtures("scripts", "own_precision")
def test_a_finished_training_is_not_repeated_on_another_machine(tmp_path: Path) -> None:
    done = {"trainings": {"fast-linf": {"complete": True, "seconds": 7.0}}}
    deadline = time.monotonic() + 60
    job = module("gpu_job").Job("train", torch.device("cpu"), tmp_path, deadline, True, done)
    module("gpu_parts").train(job)
    assert json.loads((tmp_path / "train.json").read_text())["trainings"] == done["trainings"]
    assert [path.name for path in tmp_path.iterdir()] == ["train.json"]


@pytest.mark.usefixtures("scripts")
def test_the_log_of_the_tests_is_counted_by_file() -> None:
    results = module("gpu_parts")._results
    beside = """[gw0] [ 33%] PASSED tests/test_golden.py::test_a[x PASSED y]
[gw1] [ 66%] FAILED tests/test_golden.py::test_b
tests/test_golden.py::test_c
[gw1] [100%] SKIPPED tests/attacks/test_attack_contract.py::test_d
FAILED tests/test_golden.py::test_b - AssertionError
"""
    assert results(beside) == {
        "tests/test_golden.py": {"passed": 1, "failed": 1},
        "tests/attacks/test_attack_contract.py": {"skipped": 1},
    }
    alone = """tests/test_golden.py::test_a PASSED                  [ 33%]
tests/test_golden.py::test_b PASSED                            [ 66%]
tests/test_gpu.py::test_c SKIPPED (there is no GPU)          [100%]
"""
    assert results(alone) == {
        "tests/test_golden.py": {"passed": 2},
        "tests/test_gpu.py": {"skipped": 1},
    }


@pytest.mark.usefixtures("scripts")
def test_files_are_brought_back_once_records_first_and_no_more_than_eight(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu_back = module("gpu_back")
    out, target = tmp_path / "out", tmp_path / "target"
    out.mkdir()
    target.mkdir()
    (out / "earlier.safetensors").write_bytes(b"earlier")
    (out / "tests.json").write_text("{}")
    back = gpu_back.Back(out, target)
    for name in "abcdefgh":
        (out / f"{name}.safetensors").write_bytes(b"weights")
    (out / "train.json").write_text("{}")
    (out / "bench.part").write_text("half")
    (out / "train-fast-linf").mkdir()
    back.bring()
    back.bring()
    names = [f"{name}.safetensors" for name in "abcdef"]
    assert sorted(path.name for path in target.iterdir()) == [*names, "tests.json", "train.json"]
    assert capsys.readouterr().out.count("stays here") == 2
    (out / "train.json").write_text('{"complete": true}')
    back.bring()
    assert (target / "train.json").read_text() == '{"complete": true}'
    gpu_back.Back(out, None).bring()


@pytest.mark.usefixtures("scripts")
def test_a_folder_is_brought_back_in_pieces_or_without_its_tensors(tmp_path: Path) -> None:
    gpu_back = module("gpu_back")
    there, here = tmp_path / "there", tmp_path / "here"
    (there / "verdict/adversarial").mkdir(parents=True)
    here.mkdir()
    content = np.random.default_rng(0).bytes(5_000)
    (there / "verdict/adversarial/0.safetensors").write_bytes(content)
    (there / "verdict/journal.jsonl").write_text("{}\n")
    (there / "verdict.tar.xz.99").write_bytes(b"of an earlier call")
    for piece in gpu_back.pack(there / "verdict", 4, piece=2_000):
        assert piece.stat().st_size <= 2_000
        piece.rename(here / piece.name)
    gpu_back.unpack(here / "verdict")
    assert (here / "verdict/adversarial/0.safetensors").read_bytes() == content
    assert (here / "verdict/journal.jsonl").read_text() == "{}\n"
    (there / "verdict/adversarial/0.safetensors").write_bytes(2 * content)
    (found,) = gpu_back.pack(there / "verdict", 2, piece=2_000)
    with tarfile.open(found) as archive:
        assert archive.getnames() == ["verdict/journal.jsonl"]
    gpu_back.unpack(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


@pytest.mark.usefixtures("scripts")
def test_files_come_back_while_a_part_runs_and_it_is_killed_after_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = module("gpu")
    monkeypatch.setattr(gpu, "_EVERY", 0.1)
    out, target = tmp_path / "out", tmp_path / "target"
    out.mkdir()
    target.mkdir()
    script = f"import time; open({str(out / 'bench.json')!r}, 'w').write('1'); time.sleep(60)"
    back = gpu.Back(out, target)
    assert "did not stop" in gpu._ended([sys.executable, "-c", script], {}, 3.0, back)
    assert (target / "bench.json").read_text() == "1"


@pytest.mark.usefixtures("scripts")
def test_parts_without_time_are_left_out_and_train_without_a_training_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu = module("gpu")
    monkeypatch.setattr(gpu, "SHEETS", tmp_path / "sheets")
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(tmp_path / "out"), "--total", "0.1"])
    assert gpu.main() == 1
    printed = capsys.readouterr().out
    assert "train is left out: no training set" in printed
    for part in ("tests", "bench", "verdict"):
        assert f"== {part}: left out, no time" in printed
    assert "train" not in gpu._parts(small=False)
    (tmp_path / "sheets/1").mkdir(parents=True)
    (tmp_path / "sheets/1/part.json").write_text("{}")
    assert gpu._parts(small=False) == list(PARTS)


@pytest.mark.usefixtures("scripts")
def test_the_training_set_is_packed_into_the_room_that_the_checkout_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu, checkout = module("gpu"), tmp_path / "checkout"
    checkout.write_bytes(bytes(5 * 2**20))
    draws = np.random.default_rng(0)
    pixels = draws.integers(0, 256, (5_000, 8, 8, 3), dtype=np.uint8)
    found = SimpleNamespace(pixels=pixels, labels=draws.integers(0, 10, 5_000))
    monkeypatch.setattr(data, "load", lambda *_: found)
    monkeypatch.setattr(gpu, "SHEETS", tmp_path / "sheets")
    monkeypatch.setattr(gpu, "_travelling", lambda: [checkout])
    monkeypatch.setattr(module("wheels"), "FOLDER", tmp_path)
    for carried, parts in ((10, 1), (6.7, 2)):
        monkeypatch.setattr(sys, "argv", ["gpu.py", "--pack", "--carried", str(carried)])
        assert gpu.main() == 0
        assert f"5.0 of {carried:g} MiB are taken" in capsys.readouterr().out
        assert len(list((tmp_path / "sheets").iterdir())) == parts
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--pack", "--carried", "6"])
    assert gpu.main() == 1
    assert "git sparse-checkout set" in capsys.readouterr().err


@pytest.mark.usefixtures("scripts")
def test_the_size_of_the_checkout_is_that_of_the_files_git_does_not_ignore() -> None:
    paths = module("gpu")._travelling()
    assert ROOT / "benchmarks/gpu.py" in paths
    assert not any(".venv" in path.parts for path in paths)


@pytest.mark.parametrize("arguments", [("--minutes", "-1"), ("--total", "0"), ("--minutes", "nan")])
def test_a_limit_that_is_no_time_is_refused(tmp_path: Path, arguments: tuple[str, str]) -> None:
    ran = run(tmp_path / "out", *arguments)
    assert ran.returncode == 2
    assert f"argument {arguments[0]}: expected a number above 0" in ran.stderr
    assert not (tmp_path / "out").exists()
