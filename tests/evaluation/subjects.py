"""Small things to evaluate, and defenses whose truth is known."""

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
    """A network that answers in microseconds."""
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
    """Images that `make_model()` classifies correctly, but for every seventh."""
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
    """A single step against the gradient: one look, one gradient, one look."""

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
    """A random corner of the ball, and no gradient."""

    def run(self, target: Querier, threat: ThreatModel, seed: int) -> Outcome:
        draws = torch.Generator().manual_seed(seed)
        noise = torch.rand(target.natural.shape, generator=draws).round() * 2 - 1
        noise = noise.to(target.natural.device)
        images = threat.project(target.natural + threat.eps * noise, target.natural)
        return Outcome(images, target(images).argmax(dim=1) != target.labels)


@final
class Boast(Attack):
    """Does nothing and claims everything."""

    def run(self, target: Querier, threat: ThreatModel, seed: int) -> Outcome:
        del threat, seed
        return Outcome(target.natural, torch.ones_like(target.labels, dtype=torch.bool))


class Wrapper(nn.Module):
    """A defense that is the model; others change one thing."""

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
    """Rounds its input, which leaves no gradient."""

    def predict(self, x: Tensor, adaptation: Any) -> Tensor:
        return super().predict((x * 255).round() / 255, adaptation)


class Noisy(Wrapper):
    """Adds noise to the logits."""

    def predict(self, x: Tensor, adaptation: Any) -> Tensor:
        logits = super().predict(x, adaptation)
        return logits + torch.randn_like(logits)


class Leaky(Wrapper):
    """Counts the batches it was asked about, and lets the count into its answers."""

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
    """The same, but says so and can be put back: a stream."""

    batch_dependent = True
    stateful = True

    def reset(self) -> None:
        self.count = 0

    def snapshot(self) -> int:
        return self.count

    def restore(self, state: int) -> None:
        self.count = state


class Sociable(Wrapper):
    """Lets the mean of the batch into every answer, and does not declare it."""

    def predict(self, x: Tensor, adaptation: Any) -> Tensor:
        return (
            super().predict(x, adaptation) + 20 * x.mean() * torch.eye(CLASSES, device=x.device)[0]
        )


class Probabilities(Wrapper):
    """Answers with probabilities."""

    def predict(self, x: Tensor, adaptation: Any) -> Tensor:
        return super().predict(x, adaptation).softmax(dim=1)


class Broken(Wrapper):
    """Has no answer for images whose first pixel is dark."""

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
    """The tiny model with dent on it, and two attacks of different strength."""
    model = model or make_model()
    if defenses is None:
        defenses = {"dent": Dent(model, DentConfig(steps=2, lr=0.01))}
    if attacks is None:
        attacks = [Push(0.5, name="nudge"), Push()]
    return Subject(model, make_dataset(size), defenses, attacks, ThreatModel("linf", eps))


def batch_of(dataset: ImageDataset, positions: Sequence[int]) -> tuple[Tensor, Tensor]:
    """A batch on the device that tests compute on."""
    x, y = dataset.batch(positions)
    return x.to(DEVICE), y.to(DEVICE)


def with_threat(subject: Subject, eps: str) -> Subject:
    """The same subject under another eps."""
    return replace(subject, threat=ThreatModel("linf", eps))


SMALL = Settings(n=20, batch_size=8)
"""Three batches, the last one of four."""
