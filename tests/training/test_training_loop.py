"""The images of each epoch, and the learning rate and averaging of each step."""

import json
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from dent import data
from dent.data import ImageDataset
from dent.training import Measured, accelerator, loop, train, write_card
from dent.training.spec import TrainingSpec
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

    def labels_of(self, indices: Sequence[int]) -> list[int]:
        return self.inner.labels_of(indices)


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


def in_class_order(path: Path, split: str) -> Noting:
    """Lay four classes with twelve images each as a folder, and open it."""
    images, _ = data.load("cifar10-sample").batch(range(48))
    for index, image in enumerate(images):
        folder = path / split / f"class{index // 12}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder / f"{index:02d}.png")
    name = "train" if split == "train" else "test"
    return Noting(data.load("imagefolder-c32", name, root=path))


def test_images_of_a_folder_are_drawn_from_all_its_classes(tmp_path: Path) -> None:
    images, watch = (in_class_order(tmp_path / "data", split) for split in ("train", "val"))
    recipe = fast(epochs=1, batch_size=4)
    result = train(
        MODEL, recipe, images, watch, tmp_path / "run", accelerator("cpu", "no"),
        n=16, watched=16, watch_steps=1,
    )  # fmt: skip
    trained = {index for batch in images.asked if len(batch) == 4 for index in batch}
    watched = {index for batch in watch.asked for index in batch}
    assert len(trained) == len(watched) == 16
    watch.asked.clear()
    written = json.loads(
        write_card(result, watch, torch.device("cpu"), Measured(16, 0, 16)).read_text()
    )
    measured = set(watch.asked[0])
    assert len(measured) == 32
    assert not measured & watched
    plan = json.loads((tmp_path / "run" / "measured-16" / "plan.json").read_text())
    attacked = {index for batch in plan["batches"] for index in batch["positions"]}
    assert attacked < measured
    for chosen in (trained, watched, measured, attacked):
        assert {index // 12 for index in chosen} == {0, 1, 2, 3}
    assert written["accuracies"][0]["provenance"].endswith(
        "on 32 drawn images of imagefolder-c32 test"
    )


def test_images_of_a_mixed_dataset_are_the_first_and_the_last(tmp_path: Path) -> None:
    images, watch = map(Noting, halves())
    recipe = fast(None, epochs=1, batch_size=32)
    result = train(
        MODEL, recipe, images, watch, tmp_path / "run", accelerator("cpu", "no"), n=64, watched=8
    )
    assert {index for batch in images.asked for index in batch} == set(range(64))
    assert {index for batch in watch.asked for index in batch} == set(range(56, 64))
    assert "drawn" not in result.spec.to_json()
    drawn = result.spec.model_copy(update={"drawn": True})
    assert TrainingSpec.read(drawn.to_json(), "here") == drawn
    assert drawn.differences(result.spec) == ("drawn: the folder has nothing, this run has True",)
