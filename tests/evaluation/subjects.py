"""Small subjects for evaluations, and defenses whose behavior is known."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from dent import Dent, DentConfig
from dent.attacks import Attack, Defense, Outcome, Querier
from dent.data.dataset import ArrayDataset, ImageDataset
from dent.evaluation import Settings, Subject
from dent.threat import ThreatModel
from tests.on_device import DEVICE

SIDE = 6
CLASSES = 4
EPS = "8/255"


def make_model(seed: int = 0) -> nn.Sequential:
    """Return a network whose forward takes microseconds."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(4 * SIDE * SIDE, CLASSES),
        )
    return model.eval().to(DEVICE)


def make_dataset(size: int = 40, seed: int = 0, name: str = "toy") -> ArrayDataset:
    """Return images that `make_model()` classifies correctly, except every seventh."""
    draw = np.random.default_rng(seed)
    pixels = draw.integers(0, 256, (size, SIDE, SIDE, 3), dtype=np.uint8)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        labels = make_model()(images.to(DEVICE)).argmax(dim=1).cpu().numpy().astype(np.int64)
    labels[::7] = (labels[::7] + 1) % CLASSES
    return ArrayDataset(
        name=name,
        split="test",
        classes=tuple("abcd"),
        pixels=pixels,
        labels=labels,
        sample_ids=tuple(range(100, 100 + size)),
    )


@final
@dataclass(frozen=True)
class Push(Attack):
    """One step along the sign of the gradient: two queries and one gradient."""

    strength: float = 1.0

    def run(self, target: Querier, threat: ThreatModel, seed: int) -> Outcome:
        del seed
        with torch.enable_grad():
            leaf = target.natural.clone().requires_grad_()
            loss = nn.functional.cross_entropy(target(leaf), target.labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, leaf)
        moved = target.natural + self.strength * threat.eps * gradient.sign()
        images = threat.project(moved, target.natural)
        return Outcome(images, target(images).argmax(dim=1) != target.labels)


@final
class Guess(Attack):
    """Tries one random corner of the eps ball, without a gradient."""

    def run(self, target: Querier, threat: ThreatModel, seed: int) -> Outcome:
        draws = torch.Generator().manual_seed(seed)
        noise = torch.rand(target.natural.shape, generator=draws).round() * 2 - 1
        noise = noise.to(target.natural.device)
        images = threat.project(target.natural + threat.eps * noise, target.natural)
        return Outcome(images, target(images).argmax(dim=1) != target.labels)


@final
class Boast(Attack):
    """Returns the natural images and claims that every member is fooled."""

    def run(self, target: Querier, threat: ThreatModel, seed: int) -> Outcome:
        del threat, seed
        return Outcome(target.natural, torch.ones_like(target.labels, dtype=torch.bool))


class Wrapper(nn.Module):
    """A defense that answers as its model does; each subclass changes one thing."""

    batch_dependent = False

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.eval()

    def adapt(self, x: Tensor) -> Any:
        del x

    def predict(self, x: Tensor, adaptation: Any) -> Tensor:
        del adaptation
        logits: Tensor = self.model(x)
        return logits

    def forward(self, x: Tensor) -> Tensor:
        return self.predict(x, self.adapt(x))


class Masked(Wrapper):
    """Rounds its input, which makes the gradient zero."""

    def predict(self, x: Tensor, adaptation: Any) -> Tensor:
        return super().predict((x * 255).round() / 255, adaptation)


class Noisy(Wrapper):
    """Adds noise to the logits."""

    def predict(self, x: Tensor, adaptation: Any) -> Tensor:
        logits = super().predict(x, adaptation)
        return logits + torch.randn_like(logits)


class Leaky(Wrapper):
    """Counts its batches, and its answers depend on the count."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.count = 0

    def adapt(self, x: Tensor) -> Any:
        del x
        self.count += 1
        return self.count

    def predict(self, x: Tensor, adaptation: Any) -> Tensor:
        logits = super().predict(x, adaptation)
        return logits.roll(adaptation % 2, dims=1)


class Remembering(Leaky):
    """Like `Leaky`, but declares its state and can restore it: a stream."""

    batch_dependent = True
    stateful = True

    def reset(self) -> None:
        self.count = 0

    def snapshot(self) -> int:
        return self.count

    def restore(self, state: int) -> None:
        self.count = state


class Sociable(Wrapper):
    """Adds a multiple of the batch's mean to every answer, and does not declare it."""

    def predict(self, x: Tensor, adaptation: Any) -> Tensor:
        return (
            super().predict(x, adaptation) + 20 * x.mean() * torch.eye(CLASSES, device=x.device)[0]
        )


class Probabilities(Wrapper):
    """Returns probabilities instead of logits."""

    def predict(self, x: Tensor, adaptation: Any) -> Tensor:
        return super().predict(x, adaptation).softmax(dim=1)


class Broken(Wrapper):
    """Returns NaN for images whose first pixel is dark."""

    def predict(self, x: Tensor, adaptation: Any) -> Tensor:
        logits = super().predict(x, adaptation)
        dark = x[:, 0, 0, 0].detach() < 0.25
        return torch.where(dark.unsqueeze(1), torch.nan, logits)


def make_subject(
    defenses: Mapping[str, Defense] | None = None,
    attacks: Sequence[Attack] | None = None,
    *,
    size: int = 40,
    eps: str = EPS,
    model: nn.Module | None = None,
) -> Subject:
    """Return a subject: by default, Dent on the tiny model and a weaker and a stronger attack."""
    model = model or make_model()
    if defenses is None:
        defenses = {"dent": Dent(model, DentConfig(steps=2, lr=0.01))}
    if attacks is None:
        attacks = [Push(0.5, name="nudge"), Push()]
    return Subject(model, make_dataset(size), defenses, attacks, ThreatModel("linf", eps))


def batch_of(dataset: ImageDataset, positions: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return a batch on the device on which the tests compute."""
    x, y = dataset.batch(positions)
    return x.to(DEVICE), y.to(DEVICE)


def with_threat(subject: Subject, eps: str) -> Subject:
    """Return the same subject with another eps."""
    return replace(subject, threat=ThreatModel("linf", eps))


SMALL = Settings(n=20, batch_size=8)
"""Three batches; the last one has four members."""
