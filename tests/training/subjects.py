"""A small training on real images from the bundled sample."""

import json
from pathlib import Path
from typing import Any

from dent import data
from dent.data import ImageDataset
from dent.training import Recipe, TrainingProgress, TrainingResult, accelerator, named, train

MODEL = "resnet-8-1"


def halves() -> tuple[ImageDataset, ImageDataset]:
    """Return 192 images for training, and 64 others to measure accuracy on."""
    sample = data.load("cifar10-sample")
    return sample.subset(range(192)), sample.subset(range(192, 256))


def fast(norm: str | None = "linf", **changes: Any) -> Recipe:
    return named("fast", norm, **{"epochs": 3, "batch_size": 32, "ema": 0.9} | changes)


def run(folder: Path | str, recipe: Recipe | None = None, **settings: Any) -> TrainingResult:
    images, watch = halves()
    chosen = {"watched": 32, "watch_steps": 2} | settings
    return train(MODEL, recipe or fast(), images, watch, folder, accelerator("cpu", "no"), **chosen)


def outcome(folder: Path) -> tuple[bytes, bytes, list[dict[str, Any]]]:
    """Return the last and the best weights and the metrics of a training, without times."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("timing")
    return (
        (folder / "last.safetensors").read_bytes(),
        (folder / "best.safetensors").read_bytes(),
        lines,
    )


class StopError(Exception):
    """Ends a training from its progress callback."""


def stop_at(step: int) -> Any:
    """Return a progress callback that ends the training after a step."""

    def report(state: TrainingProgress) -> None:
        if state.step == step:
            raise StopError

    return report
