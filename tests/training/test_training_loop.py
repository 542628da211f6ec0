"""The images of each epoch, and the learning rate and averaging of each step."""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dent.data import ImageDataset
from dent.training import accelerator, loop, train
from tests.training.subjects import MODEL, fast, halves


class Noting(ImageDataset):
    """A wrapper of a dataset that records the requested positions."""

    def __init__(self, inner: ImageDataset) -> None:
        self.inner, self.asked = inner, list[list[int]]()
        self.name, self.split, self.classes = inner.name, inner.split, inner.classes
        self.sample_ids, self.digest = inner.sample_ids, inner.digest

    def __len__(self) -> int:
        return len(self.inner)

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        self.asked.append(list(indices))
        return self.inner.batch(indices)


def test_every_epoch_sees_every_image_once_in_a_different_order(tmp_path: Path) -> None:
    images, watch = halves()
    noting = Noting(images)
    recipe = fast(None, epochs=2, batch_size=32)
    train(MODEL, recipe, noting, watch, tmp_path / "run", accelerator("cpu", "no"), watched=8)
    steps = [batch for batch in noting.asked if len(batch) == 32]
    first, second = (list(chain(*steps[at : at + 6])) for at in (0, 6))
    assert len(steps) == 12
    assert sorted(first) == sorted(second) == list(range(192))
    assert first != second
    assert first != sorted(first)


def test_each_step_uses_the_scheduled_learning_rate_and_updates_the_average(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[float, float]] = []
    step = torch.optim.SGD.step

    def noted(self: torch.optim.SGD, *arguments: Any) -> Any:
        seen.append((self.param_groups[0]["lr"], self.param_groups[0]["momentum"]))
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.SGD, "step", noted)
    images, watch = halves()
    recipe = fast(None, epochs=2, batch_size=32)
    training = loop.Training.__init__
    kept: list[loop.Training] = []

    def keep(self: loop.Training, *arguments: Any) -> None:
        training(self, *arguments)
        kept.append(self)

    monkeypatch.setattr(loop.Training, "__init__", keep)
    train(MODEL, recipe, images, watch, tmp_path / "run", accelerator("cpu", "no"), watched=8)
    assert seen == [(recipe.learning_rate(at, 6), recipe.momentum) for at in range(12)]
    state = kept[0].state
    assert state.average is not None
    assert int(state.average.n_averaged) == 12
    pairs = zip(state.average.module.parameters(), state.model.parameters(), strict=True)
    assert all(not torch.equal(mean, last) for mean, last in pairs)
