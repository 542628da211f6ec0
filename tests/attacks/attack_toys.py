"""Small models and defenses, and small budgets of attacks, for the tests of attacks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dent.attacks.adaptive import RUNGS
from tests.on_device import DEVICE

GOLDEN = Path(__file__).parents[1] / "golden"
SINGLES = ("apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square")
SETS = ("standard", "plus")
SMALL: dict[str, dict[str, Any]] = {
    "pgd": {"iterations": 3, "restarts": 2},
    "pgd-imagenet": {"iterations": 2, "restarts": 2},
    "apgd-ce": {"iterations": 4, "restarts": 2},
    "apgd-dlr": {"iterations": 4, "restarts": 2},
    "apgd-t": {"iterations": 3, "targets": 2},
    "fab": {"iterations": 2, "restarts": 2},
    "fab-t": {"iterations": 2, "targets": 2},
    "square": {"iterations": 6},
    "standard": {"iterations": 3, "targets": 2, "square_iterations": 5},
    "plus": {"iterations": 3, "targets": 2, "square_iterations": 5},
    **{f"adaptive-{rung}": {"iterations": 3, "targets": 1} for rung in RUNGS},
    "zero-update": {"iterations": 3},
    "surrogates": {"iterations": 3, "lessons": 1, "epochs": 1},
    "fpa": {"iterations": 3, "rounds": 2},
    "gmsa-avg": {"iterations": 3, "rounds": 2},
    "gmsa-min": {"iterations": 3, "rounds": 2},
    "collateral": {"iterations": 3},
    "rays": {"iterations": 60},
}


def golden_labels() -> Tensor:
    """Return the labels of the fixture `images`."""
    return load_file(GOLDEN / "golden.safetensors")["labels"].long().to(DEVICE)


def small_images(count: int = 5, side: int = 6, seed: int = 0) -> Tensor:
    """Return random images (count, 3, side, side) with pixels in [0, 1)."""
    images = torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))
    return images.to(DEVICE)


def linear(classes: int = 4, pixels: int = 108, seed: int = 0) -> nn.Sequential:
    """Return a random linear classifier."""
    layer = nn.Linear(pixels, classes)
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        layer.weight.normal_(generator=draws)
        layer.bias.normal_(generator=draws)
    return nn.Sequential(nn.Flatten(), layer).eval().to(DEVICE)


class Base(nn.Module):
    """The static model that `Toy.unwrap` returns."""

    def __init__(self, answer: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.answer = answer
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.answer(x)


class Toy(nn.Module):
    """A dynamic defense that predicts with its model; subclasses override `adapt` and `predict`.

    It also has `unwrap`, `steps` and `with_steps`, and `adapt` takes `differentiable` and `last`.
    """

    batch_dependent = False
    steps = 4

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def adapt(self, x: Tensor, *, differentiable: bool = False, last: int | None = None) -> Any:
        return None

    def unwrap(self) -> nn.Module:
        return Base(self.static)

    def static(self, x: Tensor) -> Tensor:
        return self.model(x)  # type: ignore[no-any-return]

    def with_steps(self, steps: int) -> "Toy":
        return self

    def predict(self, x: Tensor, adaptation: Any) -> Tensor:
        return self.model(x)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        return self.predict(x, self.adapt(x))


class Company(Toy):
    """A batch-dependent defense: it subtracts three times the batch's mean prediction."""

    batch_dependent = True

    def adapt(self, x: Tensor, *, differentiable: bool = False, last: int | None = None) -> Tensor:
        with torch.set_grad_enabled(differentiable and last != 0):
            mean: Tensor = self.model(x).softmax(dim=1).mean(dim=0)
        return mean

    def predict(self, x: Tensor, adaptation: Tensor) -> Tensor:
        return self.model(x) - 3.0 * adaptation  # type: ignore[no-any-return]


class Places(Toy):
    """A defense with a separate classifier for every place in the batch.

    A row in a wrong place is predicted by a wrong classifier.
    """

    def __init__(self, places: int, classes: int = 4, pixels: int = 108) -> None:
        super().__init__(nn.Identity())
        draws = torch.Generator().manual_seed(1)
        self.weight = nn.Parameter(torch.randn(places, classes, pixels, generator=draws).to(DEVICE))

    def predict(self, x: Tensor, adaptation: Any) -> Tensor:
        return torch.einsum("ncp,np->nc", self.weight, x.flatten(1) - 0.5)

    def static(self, x: Tensor) -> Tensor:
        return self.predict(x, None)


class Recorder(Toy):
    """A defense that asserts that the rows of every query are the members of the batch, in order.

    A row counts as the member with the nearest natural image. With `parts`, a query may leave out
    members. `sizes` has the size of every query.
    """

    def __init__(
        self, model: nn.Module, natural: Tensor, *, batch_dependent: bool, parts: bool = False
    ) -> None:
        super().__init__(model)
        self.natural = natural
        self.batch_dependent = batch_dependent
        self.parts = parts
        self.sizes: list[int] = []
        self.strict = True

    def predict(self, x: Tensor, adaptation: Any) -> Tensor:
        self._record(x)
        return super().predict(x, adaptation)

    def static(self, x: Tensor) -> Tensor:
        self._record(x)
        return super().static(x)

    def _record(self, x: Tensor) -> None:
        self.sizes.append(len(x))
        if self.strict:
            assert x.shape[1:] == self.natural.shape[1:]
            distance = torch.cdist(x.detach().flatten(1), self.natural.flatten(1))
            members = distance.argmin(dim=1).tolist()
            assert members == (
                sorted(set(members)) if self.parts else list(range(len(self.natural)))
            )


class Speechless(Toy):
    """A defense that returns NaN logits for some members, in batches of one size."""

    def __init__(self, model: nn.Module, members: tuple[int, ...], size: int) -> None:
        super().__init__(model)
        self.members = members
        self.size = size

    def predict(self, x: Tensor, adaptation: Any) -> Tensor:
        logits: Tensor = self.model(x)
        if len(x) != self.size:
            return logits
        mute = torch.zeros(len(x), 1, device=x.device)
        mute[list(self.members)] = float("nan")
        return logits + mute


class Unfoolable(Toy):
    """A defense that always predicts the labels, with gradients of zero."""

    def __init__(self, labels: Tensor, classes: int, *, batch_dependent: bool) -> None:
        super().__init__(nn.Identity())
        self.answers = nn.functional.one_hot(labels, classes).float() * 5
        self.batch_dependent = batch_dependent

    def predict(self, x: Tensor, adaptation: Any) -> Tensor:
        return self.answers + 0 * x.flatten(1).sum(dim=1, keepdim=True)

    def static(self, x: Tensor) -> Tensor:
        return self.predict(x, None)
