"""Defenses that fooled an earlier version of the verdict, and honest ones that it could not see.

Their truth is known by construction: each answers like the net it was made from, or like one that
is hidden inside, whatever it shows to whoever looks.

| defense | the truth | what it shows |
| --- | --- | --- |
| `Remembers` | the net | to near neighbours of what it was served, the class it gave before |
| `Saturated` | the net | a softmax, a sigmoid, a tangent, a rank or a vote instead of logits |
| `Forger` | the net | another net's gradient, where it thinks nobody checks |
| `TwoFaced` | the net | another net to whoever asks with gradients |
| `Tires` | the net | another net after some calls |
| `Rippled` | the net | the exact gradient of a small wave on the input |
| `Decoys` | the net | more classes, whose slopes hide those of the classes that win |
| `OnlyOnTheGrid` | the net | a gradient at natural images, and none where attacks go |
| `OwnNoise` | the net, on average | logits with noise from a generator of its own |
| `Hidden` | the hidden net | the plain gradient, which is exact: nothing adapts |
| `Quantized` | the hidden net | 8-bit pixels, with an honest straight-through gradient |
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Trick(nn.Module):
    """Adapts to nothing and offers nothing beyond the protocol."""

    batch_dependent = False

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net.eval()
        self.eval()

    def adapt(self, x: Tensor) -> Any:
        del x

    def predict(self, x: Tensor, adaptation: Any) -> Tensor:
        del adaptation
        logits: Tensor = self.net(x)
        return logits

    def forward(self, x: Tensor) -> Tensor:
        return self.predict(x, self.adapt(x))


class Remembers(Trick):
    """Gives near neighbours of what it has answered the class that it gave then.

    Args:
        net: The truth.
        reach: How near, in l-inf.
        least: How many images it must have seen.
        inside: Where it remembers: in a list, or in a tensor of its state.
    """

    def __init__(self, net: nn.Module, reach: float = 0.1, least: int = 1) -> None:
        super().__init__(net)
        self.reach, self.least = reach, least
        self.images: list[Tensor] = []
        self.classes: list[int] = []

    def predict(self, x: Tensor, adaptation: Any) -> Tensor:
        logits = super().predict(x, adaptation)
        for row, image in enumerate(x.detach()):
            near = [
                known
                for known, seen in zip(self.classes, self.images, strict=True)
                if float((image - seen).abs().max()) <= self.reach
            ]
            if near and len(self.images) >= self.least:
                shift = torch.zeros_like(logits)
                shift[row, near[0]] = 1e3
                logits = logits + shift
            elif not near:
                self.images.append(image.clone())
                self.classes.append(int(logits[row].argmax()))
        return logits


def softmax(scale: float) -> Callable[[Tensor], Tensor]:
    return lambda z: (scale * z).softmax(dim=1)


def by_hand(scale: float) -> Callable[[Tensor], Tensor]:
    def shares(z: Tensor) -> Tensor:
        powers = (scale * (z - z.amax(dim=1, keepdim=True))).exp()
        return powers / powers.sum(dim=1, keepdim=True)

    return shares


def sigmoid(scale: float) -> Callable[[Tensor], Tensor]:
    return lambda z: (scale * (z - z.topk(2, dim=1).values.mean(dim=1, keepdim=True))).sigmoid()


def tangent(scale: float) -> Callable[[Tensor], Tensor]:
    return lambda z: (scale * (z - z.topk(2, dim=1).values.mean(dim=1, keepdim=True))).tanh()


def steep_logits(scale: float) -> Callable[[Tensor], Tensor]:
    return lambda z: scale * z


def rank(z: Tensor) -> Tensor:
    return z.argsort(dim=1).argsort(dim=1).float()


def vote(z: Tensor) -> Tensor:
    return nn.functional.one_hot(z.argmax(dim=1), z.shape[1]).to(z.dtype)


class Saturated(Trick):
    """Hands its logits through something that says which is largest, and has no slope."""

    def __init__(self, net: nn.Module, shape: Callable[[Tensor], Tensor]) -> None:
        super().__init__(net)
        self.shape = shape

    def predict(self, x: Tensor, adaptation: Any) -> Tensor:
        return self.shape(super().predict(x, adaptation))


class Forger(Trick):
    """Answers like the net, with another net's gradient unless it thinks that somebody checks.

    Args:
        net: The truth.
        other: Whose gradient is shown.
        honest: From a batch to whether its gradient is shown truly.
    """

    def __init__(self, net: nn.Module, other: nn.Module, honest: Callable[[Tensor], bool]) -> None:
        super().__init__(net)
        self.other, self.honest = other.eval(), honest

    def predict(self, x: Tensor, adaptation: Any) -> Tensor:
        if self.honest(x):
            return super().predict(x, adaptation)
        shown: Tensor = self.other(x)
        return shown + (super().predict(x, adaptation) - shown).detach()


class TwoFaced(Trick):
    """The net to whoever asks without gradients, another net to whoever asks with them."""

    def __init__(self, net: nn.Module, other: nn.Module, *, reverse: bool = False) -> None:
        super().__init__(net)
        self.other, self.reverse = other.eval(), reverse

    def predict(self, x: Tensor, adaptation: Any) -> Tensor:
        if (torch.is_grad_enabled() and x.requires_grad) != self.reverse:
            shown: Tensor = self.other(x)
            return shown
        return super().predict(x, adaptation)


class Tires(Trick):
    """The net for some calls, another net after them."""

    def __init__(self, net: nn.Module, other: nn.Module, calls: int) -> None:
        super().__init__(net)
        self.other, self.left = other.eval(), calls

    def predict(self, x: Tensor, adaptation: Any) -> Tensor:
        self.left -= 1
        if self.left < 0:
            shown: Tensor = self.other(x)
            return shown
        return super().predict(x, adaptation)


class OwnNoise(Trick):
    """Adds noise to its logits, from a generator that it keeps."""

    def __init__(self, net: nn.Module, scale: float, make: Callable[[], Any]) -> None:
        super().__init__(net)
        self.scale, self.generator = scale, make()

    def predict(self, x: Tensor, adaptation: Any) -> Tensor:
        logits = super().predict(x, adaptation)
        if isinstance(self.generator, torch.Generator):
            noise = torch.randn(logits.shape, generator=self.generator)
        else:
            noise = torch.as_tensor(self.generator.standard_normal(tuple(logits.shape))).float()
        return logits + self.scale * noise


class Hidden(Trick):
    """Answers like the hidden net; the net that it was made from is thrown away."""

    def __init__(self, net: nn.Module, hidden: nn.Module) -> None:
        super().__init__(hidden)
        del net


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, levels: int) -> Tensor:
        del ctx
        return (x * levels).round() / levels

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        del ctx
        return gradients[0], None


class Quantized(Hidden):
    """Rounds pixels to 8 bits, and passes the gradient straight through, before the hidden net."""

    def predict(self, x: Tensor, adaptation: Any) -> Tensor:
        rounded: Tensor = _Rounded.apply(x, 255)
        return super().predict(rounded, adaptation)


class Rippled(Trick):
    """Adds a small sine wave to the input. The gradient is exact, and that of the wave."""

    def __init__(self, net: nn.Module, height: float = 1 / 255, slope: float = 10.0) -> None:
        super().__init__(net)
        self.height, self.slope = height, slope

    def predict(self, x: Tensor, adaptation: Any) -> Tensor:
        wave = self.height * torch.sin(self.slope / self.height * x)
        return super().predict(x + wave, adaptation)


class Decoys(Trick):
    """Adds classes just below the largest logit, which have a steep slope and never win."""

    def predict(self, x: Tensor, adaptation: Any) -> Tensor:
        logits = super().predict(x, adaptation)
        waves = [torch.sin(40 * x.flatten(1).sum(dim=1) + phase) for phase in range(4)]
        decoys = logits.amax(dim=1, keepdim=True) - 0.1 + 1e-3 * torch.stack(waves, dim=1)
        return torch.cat([logits, decoys], dim=1)


class OnlyOnTheGrid(Trick):
    """Has a gradient at 8-bit images alone. Its weights may still require one."""

    def predict(self, x: Tensor, adaptation: Any) -> Tensor:
        pixels = x.detach() * 255
        on_the_grid = bool(((pixels - pixels.round()).abs() < 1e-2).all())
        return super().predict(x if on_the_grid else x.detach(), adaptation)
