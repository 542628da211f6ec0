"""A killed and resumed training ends with the same weights as an uninterrupted one."""

import functools
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.amp import GradScaler

from dent import data, training
from dent.errors import ConfigError, WeightsError
from dent.storage.errors import LockedError, RecordError, SpecMismatchError
from dent.storage.lock import FolderLock
from dent.training import accelerator, loop, train
from dent.training.state import InexactResumeWarning, TrainingState
from tests.training.kill_harness import KILLS, SITTINGS
from tests.training.subjects import MODEL, StopError, fast, halves, outcome, run, stop_at


def test_a_training_killed_repeatedly_ends_with_the_same_weights(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "tests.training.kill_harness", str(tmp_path)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["kills"] == KILLS
    whole, killed = outcome(tmp_path / "whole"), outcome(tmp_path / "killed")
    assert [line["epoch"] for line in whole[2]] == [1, 2, 3]
    assert killed[2] == whole[2]
    assert killed[:2] == whole[:2]
    sittings = json.loads((tmp_path / "killed" / "run.json").read_text())["sittings"]
    assert len(sittings) >= SITTINGS > 6


def test_interruptions_within_an_epoch_do_not_change_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    recipe = fast(epochs=2)
    run(tmp_path / "whole", recipe)
    for step in (2, 6, 9):
        with pytest.raises(StopError):
            run(tmp_path / "parts", recipe, progress=stop_at(step))
    run(tmp_path / "parts", recipe)
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")


def test_a_resumed_training_in_fp16_keeps_the_scale_of_its_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scalers: list[GradScaler] = []

    def scaled(*settings: Any) -> Accelerator:
        made = accelerator(*settings)
        made.scaler = GradScaler("cpu", init_scale=4.0, growth_interval=5)
        scalers.append(made.scaler)
        return made

    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr("tests.training.subjects.accelerator", scaled)
    recipe = fast(None, epochs=2)
    run(tmp_path / "whole", recipe)
    with pytest.raises(StopError):
        run(tmp_path / "parts", recipe, progress=stop_at(7))
    run(tmp_path / "parts", recipe)
    whole, _, resumed = (scaler.state_dict() for scaler in scalers)
    assert whole["scale"] == 16.0  # it grew after 5 and after 10 of 12 steps
    assert resumed == whole
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")


def state_of(**fields: Any) -> TrainingState:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    return TrainingState(model, torch.optim.SGD(model.parameters(), lr=0.1), None, **fields)


def test_each_process_resumes_with_its_own_statistics_and_counts(tmp_path: Path) -> None:
    states = [state_of(loss=loss, correct=7 * loss) for loss in (1, 2, 3)]
    for state in states:
        state.model[1](torch.randn(4, 2) + state.loss)  # type: ignore[index]
    states[0].save(tmp_path, "it", [state.own_part() for state in states[1:]])
    for process, state in enumerate(states):
        resumed = state_of()
        assert resumed.restore(tmp_path, "it", process, processes=3)
        assert (resumed.loss, resumed.correct) == (state.loss, state.correct)
        torch.testing.assert_close(
            dict(resumed.model.named_buffers()), dict(state.model.named_buffers()), rtol=0, atol=0
        )
        torch.testing.assert_close(
            list(resumed.model.parameters()), list(states[0].model.parameters()), rtol=0, atol=0
        )


def test_resuming_from_a_checkpoint_without_the_whole_state_warns(tmp_path: Path) -> None:
    """As older versions wrote it, which kept one process's statistics and no scale of the loss."""
    state_of().save(tmp_path, "it")
    state_of().restore(tmp_path, "it")
    with pytest.warns(InexactResumeWarning, match="older version"):
        state_of().restore(tmp_path, "it", processes=2)
    with pytest.warns(InexactResumeWarning, match="older version"):
        state_of(scaler=GradScaler("cpu")).restore(tmp_path, "it")


def test_the_metrics_line_of_an_epoch_that_is_repeated_is_dropped(tmp_path: Path) -> None:
    recipe = fast(None, epochs=2)
    run(tmp_path / "whole", recipe)
    with pytest.raises(StopError):
        run(tmp_path / "parts", recipe, progress=stop_at(7))
    with (tmp_path / "parts" / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 2, "killed": "before the checkpoint"}\n')
    run(tmp_path / "parts", recipe)
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")


def test_running_a_finished_training_again_takes_no_steps_and_keeps_its_files(
    tmp_path: Path,
) -> None:
    recipe = fast(None, epochs=1)
    first = run(tmp_path / "run", recipe)
    before = outcome(first.folder)
    steps: list[int] = []
    again = run(tmp_path / "run", recipe, progress=lambda state: steps.append(state.step))
    assert steps == []
    assert outcome(again.folder) == before


def test_a_folder_of_another_training_is_refused_with_all_differences(tmp_path: Path) -> None:
    run(tmp_path / "run", fast(None, epochs=1))
    before = outcome(tmp_path / "run")
    with pytest.raises(SpecMismatchError, match=r"recipe\.lr: the folder has 0\.2") as caught:
        run(tmp_path / "run", fast(None, epochs=1, lr=0.1), seed=1)
    assert len(caught.value.differences) == 3  # learning rate, seed and initial weights
    assert outcome(tmp_path / "run") == before


def test_a_folder_with_unrelated_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(RecordError, match="contains other files"):
        run(tmp_path, fast(None, epochs=1))


def test_a_folder_that_is_locked_by_another_process_is_refused(tmp_path: Path) -> None:
    with FolderLock(tmp_path), pytest.raises(LockedError, match="another process"):
        run(tmp_path, fast(None, epochs=1))


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, content: bytes | None) -> None:
    recipe = fast(None, epochs=1)
    run(tmp_path / "run", recipe)
    path = tmp_path / "run" / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-9] if content is None else content)
    with pytest.raises(RecordError, match="damaged or not a checkpoint"):
        run(tmp_path / "run", recipe)


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    run(tmp_path / "a", fast(None, epochs=1))
    run(tmp_path / "b", fast(None, epochs=1), seed=1)
    (tmp_path / "b" / "checkpoint.safetensors").write_bytes(
        (tmp_path / "a" / "checkpoint.safetensors").read_bytes()
    )
    with pytest.raises(RecordError, match="belongs to another training"):
        run(tmp_path / "b", fast(None, epochs=1), seed=1)


def test_n_above_the_size_of_the_dataset_trains_on_all_images(tmp_path: Path) -> None:
    for n in (None, 500):
        assert run(tmp_path / "run", fast(None, epochs=1), n=n).spec.used == 192


def test_invalid_arguments_leave_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="n must be a whole number, at least 1, got 0"):
        run(tmp_path / "run", n=0)
    with pytest.raises(WeightsError, match="no weights file"):
        run(tmp_path / "run", weights=tmp_path / "missing.safetensors")
    assert not (tmp_path / "run").exists()


def test_folders_and_weights_may_be_text(tmp_path: Path) -> None:
    first = run(str(tmp_path / "first"), fast(None, epochs=1))
    second = run(str(tmp_path / "second"), fast(None, epochs=1), weights=str(first.last))
    assert second.folder == tmp_path / "second"
    assert second.spec.started_from == "last.safetensors"


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, nn.Linear(2, 2), "a model to train is named, .* got torch.nn.modules.linear.Linear"),
        (1, "fast-linf", "recipe must be a Recipe, such as dent.training.named.* got builtins.str"),
        (2, torch.zeros(2, 3, 8, 8), "data must be a dent.data.ImageDataset, .* got torch.Tensor"),
        (3, None, "watch must be a dent.data.ImageDataset, .* got builtins.NoneType"),
        (5, None, r"accelerator must be dent.training.accelerator\(\), got builtins.NoneType"),
    ],
)
def test_arguments_of_another_type_are_refused(
    position: int, value: Any, message: str, tmp_path: Path
) -> None:
    images, watch = halves()
    arguments: list[Any] = [MODEL, fast(), images, watch, tmp_path / "run", accelerator("cpu")]
    arguments[position] = value
    with pytest.raises(ConfigError, match=message):
        train(*arguments)
    assert not (tmp_path / "run").exists()


def test_the_example_of_the_documentation_trains_and_writes_its_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    block = re.search(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert block is not None
    images, watch = halves()
    monkeypatch.setattr(data, "load", lambda _, split="test": watch if split == "test" else images)
    small = functools.partial(train, watched=32, watch_steps=1)
    monkeypatch.setattr(training, "train", lambda _, *rest: small(MODEL, *rest))
    monkeypatch.setattr(training, "named", lambda *names, epochs: fast(names[1], epochs=1))
    measured = training.Measured(pgd=8, autoattack=0)
    card = functools.partial(training.write_card, measured=measured)
    monkeypatch.setattr(training, "write_card", card)
    monkeypatch.chdir(tmp_path)
    exec(block[1], {})  # noqa: S102
    assert (tmp_path / "runs" / "mine" / "card.md").exists()
