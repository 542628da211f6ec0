"""Defenses whose truth is known, for attacks and suites to prove themselves on.

| defense | the truth |
| --- | --- |
| `Identity` | the static model: the gain is exactly 0 |
| `Masked` | the static model, seen through a gradient of zero |
| `Loud` | the static model, with a gradient drowned in noise drawn anew at every answer |
| `Undecided` | wrong by chance on a third of all answers, natural ones too |
| `LargeOnly` | robust in batches of some size; the static model in smaller ones |
| `AllOrNothing` | robust where every member was perturbed; else the static model |
| `Chooser` | two models, of which it serves the one that a batch fools less |
| `Leaky` | answers by the batch before: nothing it answers can be submitted again |
| `Better` | another model, which is robust: a true gain |

`Nearest` is that robust model, and `withstands` the truth of a linear one.

Beside these, anti-adversary, hedge and ET3 of `dent.defenses` were published as robust,
and are their static model under transfer.

Each offers by structure what attackers may ask for, where it has it.
"""

from typing import Any

import torch
from torch import Tensor, nn


class Known(nn.Module):
    """What they share: a static base, and an answer that is made of `adapt` and `predict`."""

    batch_dependent = False

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def adapt(self, x: Tensor, *, differentiable: bool = False) -> Any:
        return None

    def predict(self, x: Tensor, adaptation: Any) -> Tensor:
        return self.model(x)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        return self.predict(x, self.adapt(x))

    def unwrap(self) -> nn.Module:
        return self.model


class Identity(Known):
    """Changes nothing."""


class Masked(Known):
    """Rounds its input to steps far below any eps, so that no gradient passes."""

    def __init__(self, model: nn.Module, levels: int = 1023) -> None:
        super().__init__(model)
        self.levels = levels

    def predict(self, x: Tensor, adaptation: Any) -> Tensor:
        return self.model((x * self.levels).round() / self.levels)  # type: ignore[no-any-return]


class Loud(Known):
    """Adds nothing to the answer and noise to its gradient."""

    def __init__(self, model: nn.Module, volume: float) -> None:
        super().__init__(model)
        self.volume = volume

    def predict(self, x: Tensor, adaptation: Any) -> Tensor:
        logits: Tensor = self.model(x)
        noise = torch.randn(*logits.shape, x[0].numel())
        nothing = (x - x.detach()).flatten(1).unsqueeze(2)
        return logits + self.volume * (noise @ nothing).squeeze(2)


class Undecided(Known):
    """Answers some members at random, others each time."""

    def __init__(self, model: nn.Module, share: float = 1 / 3) -> None:
        super().__init__(model)
        self.share = share

    def adapt(self, x: Tensor, *, differentiable: bool = False) -> Tensor:
        return torch.rand(len(x)) < self.share

    def predict(self, x: Tensor, adaptation: Tensor) -> Tensor:
        logits: Tensor = self.model(x)
        return torch.where(adaptation.unsqueeze(1), -logits, logits)


class LargeOnly(Known):
    """Divides small weights' influence away in a large batch: the truth is the other model's."""

    batch_dependent = True

    def __init__(self, model: nn.Module, robust: nn.Module, size: int) -> None:
        super().__init__(model)
        self.robust = robust
        self.size = size

    def adapt(self, x: Tensor, *, differentiable: bool = False) -> bool:
        return len(x) >= self.size

    def predict(self, x: Tensor, adaptation: bool) -> Tensor:
        return (self.robust if adaptation else self.model)(x)  # type: ignore[no-any-return]


class AllOrNothing(Known):
    """Knows natural images, which lie on the grid of 8 bits, and is robust only without any."""

    batch_dependent = True

    def __init__(self, model: nn.Module, robust: nn.Module) -> None:
        super().__init__(model)
        self.robust = robust

    def adapt(self, x: Tensor, *, differentiable: bool = False) -> bool:
        apart = (x.detach() * 255 - (x.detach() * 255).round()).abs().flatten(1).amax(1)
        return bool((apart > 1e-3).all())

    def predict(self, x: Tensor, adaptation: bool) -> Tensor:
        return (self.robust if adaptation else self.model)(x)  # type: ignore[no-any-return]


class Chooser(Known):
    """Knows the labels, and serves the one of two models that a batch fools less.

    So what fools the model that is served now makes it serve the other; both must be fooled.
    """

    batch_dependent = True

    def __init__(self, model: nn.Module, other: nn.Module, y: Tensor) -> None:
        super().__init__(model)
        self.models = nn.ModuleList([model, other])
        self.y = y

    def adapt(self, x: Tensor, *, differentiable: bool = False) -> int:
        with torch.no_grad():
            right = [int((model(x).argmax(1) == self.y).sum()) for model in self.models]
        return right.index(max(right))

    def predict(self, x: Tensor, adaptation: int) -> Tensor:
        return self.models[adaptation](x)  # type: ignore[no-any-return]


class Better(Known):
    """Serves another model than it was made from."""

    def __init__(self, model: nn.Module, robust: nn.Module) -> None:
        super().__init__(model)
        self.robust = robust

    def predict(self, x: Tensor, adaptation: Any) -> Tensor:
        return self.robust(x)  # type: ignore[no-any-return]


class Leaky(Known):
    """Moves its logits by the mean prediction of the batch it saw before: a bug."""

    batch_dependent = True

    def __init__(self, model: nn.Module, pull: float = 3.0) -> None:
        super().__init__(model)
        self.pull = pull
        self.before: Tensor | None = None

    def adapt(self, x: Tensor, *, differentiable: bool = False) -> Tensor | None:
        last = self.before
        with torch.no_grad():
            self.before = self.model(x).softmax(dim=1).mean(dim=0)
        return last

    def predict(self, x: Tensor, adaptation: Tensor | None) -> Tensor:
        logits: Tensor = self.model(x)
        return logits if adaptation is None else logits - self.pull * adaptation


class Nearest(nn.Module):
    """Knows its images by heart, so that none of some distance to the others can be fooled.

    The logits are, by class, less the squared distance to the nearest image: with a gradient.
    """

    def __init__(self, x: Tensor, y: Tensor, classes: int = 4) -> None:
        super().__init__()
        self.register_buffer("x", x.flatten(1))
        self.register_buffer("own", nn.functional.one_hot(y, classes).bool())
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        known, own = self.get_buffer("x"), self.get_buffer("own")
        apart = (x.flatten(1)[:, None] - known).square().sum(2)
        return -apart[:, :, None].masked_fill(~own, torch.inf).amin(1)


def withstands(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    """Whom no perturbation can change: the closed form of a linear model in l-inf, bool (N,).

    Args:
        model: Of one linear layer.
        x: Images at least eps away from the bounds.
        y: Labels.
        eps: The radius.
    """
    weight, bias = (parameter.detach() for parameter in model.parameters())
    logits = x.flatten(1) @ weight.T + bias
    own = logits.gather(1, y[:, None])
    steep = (weight[y][:, None] - weight[None]).abs().sum(2)
    margin = own - logits - eps * steep
    return (margin.scatter(1, y[:, None], 1.0) > 0).all(1)
