"""Defenses with known robustness, for tests of attacks and suites.

| defense | known robustness |
| --- | --- |
| `Identity` | that of the static model: the gain is exactly 0 |
| `Masked` | that of the static model, with a gradient of zero |
| `Loud` | that of the static model, with new noise in the gradient of every query |
| `Undecided` | a random third of all predictions is wrong, also for natural images |
| `LargeOnly` | robust in batches of at least some size; in smaller ones as the static model |
| `AllOrNothing` | robust if every member was perturbed; otherwise as the static model |
| `Chooser` | uses the one of two models that is correct for more members of the batch |
| `Leaky` | depends on the previous batch, so its predictions cannot be reproduced |
| `Better` | uses another model, which is robust: a real gain |

`Nearest` is that robust model. `withstands` returns the exact robustness of a linear model.

Anti-adversary, hedge and ET3 of `dent.defenses` are three more cases. They were published as
robust, but under a transfer attack they are as robust as their static model.

All defenses here have `unwrap`, and an `adapt` that takes `differentiable`.
"""

from typing import Any

import torch
from torch import Tensor, nn


class Known(nn.Module):
    """The base class: it predicts with the static model, and a call is `adapt` and `predict`."""

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
    """Predicts with the static model."""


class Masked(Known):
    """Rounds its input in steps much smaller than eps, so that its gradient is zero."""

    def __init__(self, model: nn.Module, levels: int = 1023) -> None:
        super().__init__(model)
        self.levels = levels

    def predict(self, x: Tensor, adaptation: Any) -> Tensor:
        return self.model((x * self.levels).round() / self.levels)  # type: ignore[no-any-return]


class Loud(Known):
    """Adds noise to the gradient, but not to the logits."""

    def __init__(self, model: nn.Module, volume: float) -> None:
        super().__init__(model)
        self.volume = volume

    def predict(self, x: Tensor, adaptation: Any) -> Tensor:
        logits: Tensor = self.model(x)
        noise = torch.randn(*logits.shape, x[0].numel())
        nothing = (x - x.detach()).flatten(1).unsqueeze(2)
        return logits + self.volume * (noise @ nothing).squeeze(2)


class Undecided(Known):
    """Negates the logits of some members, chosen at random in every query."""

    def __init__(self, model: nn.Module, share: float = 1 / 3) -> None:
        super().__init__(model)
        self.share = share

    def adapt(self, x: Tensor, *, differentiable: bool = False) -> Tensor:
        return torch.rand(len(x)) < self.share

    def predict(self, x: Tensor, adaptation: Tensor) -> Tensor:
        logits: Tensor = self.model(x)
        return torch.where(adaptation.unsqueeze(1), -logits, logits)


class LargeOnly(Known):
    """Predicts with the robust model in batches of at least `size` members, else the static one."""

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
    """Predicts with the robust model if no image of the batch is an 8-bit image.

    All natural images are 8-bit images.
    """

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
    """Knows the labels, and predicts with the model that is correct for more members of the batch.

    If an attack fools only the model in use, the defense switches to the other. So an attack must
    fool both.
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
    """Predicts with another model than its static model."""

    def __init__(self, model: nn.Module, robust: nn.Module) -> None:
        super().__init__(model)
        self.robust = robust

    def predict(self, x: Tensor, adaptation: Any) -> Tensor:
        return self.robust(x)  # type: ignore[no-any-return]


class Leaky(Known):
    """Shifts its logits by the mean prediction of the previous batch, which is a bug."""

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
    """A classifier by the nearest of its stored images. It is robust if they are far apart.

    The logit of a class is the negative squared distance to its nearest stored image.
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
    """Return which images of a linear model stay correct under every l-inf perturbation, bool (N,).

    This is the oracle, in closed form.

    Args:
        model: A model with one linear layer.
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
