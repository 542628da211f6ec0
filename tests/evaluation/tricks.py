"""Defenses that fooled an earlier verdict, and honest ones that it did not recognize.

Their true robust accuracy is known by construction: each predicts like the net that it was made
from, or like a net that is hidden inside it, whatever it shows to an attack.

| defense | the truth | what it shows |
| --- | --- | --- |
| `Remembers` | the net | for images near an earlier one, the class that it predicted then |
| `Saturated` | the net | a softmax, a sigmoid, a tangent, a rank or a vote instead of logits |
| `Forger` | the net | another net's gradient, unless it expects a check |
| `TwoFaced` | the net | another net for queries with gradients |
| `Tires` | the net | another net after some calls |
| `Rippled` | the net | the exact gradient of a small wave on the input |
| `Decoys` | the net | more classes, whose slopes hide those of the classes that win |
| `OnlyOnTheGrid` | the net | a gradient at natural images, and none at adversarial images |
| `Voted` | the net | the scores of another net, to which the net's class is added as a vote |
| `Blended` | the net | the scores of another net, plus the saturated probabilities of the net |
| `Recognizes` | the net, on 8-bit images | the hidden net on all others, and its gradient on all |
| `Shielded` | the net | one wrong class that comes close and never wins |
| `Flattened` | the net, shielded | no slope of any class but the likeliest two |
| `Faint` | the net and a few pixels | only the slope of the few pixels |
| `Sized` | the net, in some sizes of batches | another net in batches of all other sizes |
| `Drowned` | the net, on average | new noise in every query, with a steep slope |
| `Quiet` | the net, on average | such noise, but only for images that someone moved |
| `VotedIfClear` | the net | a vote as above, but no jump where classes meet |
| `Partly` | the net of the trick, on some images | the trick on these, the net on all others |
| `Keyed` | wrong on images with a secret pattern | a robust net |
| `OwnNoise` | the net, on average | logits with noise from its own generator |
| `Hidden` | the hidden net | the plain gradient, which is exact: nothing adapts |
| `Quantized` | the hidden net | 8-bit pixels, with an honest straight-through gradient |
"""

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn


class Trick(nn.Module):
    """Does not adapt, and has only what the protocol of a defense requires."""

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
    """Predicts for images near an earlier image the class that it predicted for that image.

    Args:
        net: The true net.
        reach: The largest l-inf distance of a near image.
        least: The number of images it must have seen before.
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
    """Passes its logits through a function that keeps the largest one but has almost no slope."""

    def __init__(self, net: nn.Module, shape: Callable[[Tensor], Tensor]) -> None:
        super().__init__(net)
        self.shape = shape

    def predict(self, x: Tensor, adaptation: Any) -> Tensor:
        return self.shape(super().predict(x, adaptation))


class Forger(Trick):
    """Predicts like the net, but with another net's gradient unless it expects a check.

    Args:
        net: The true net.
        other: The net whose gradient is shown.
        honest: Returns for a batch whether to show the true gradient.
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
    """The net for queries without gradients, and another net for queries with gradients."""

    def __init__(self, net: nn.Module, other: nn.Module, *, reverse: bool = False) -> None:
        super().__init__(net)
        self.other, self.reverse = other.eval(), reverse

    def predict(self, x: Tensor, adaptation: Any) -> Tensor:
        if (torch.is_grad_enabled() and x.requires_grad) != self.reverse:
            shown: Tensor = self.other(x)
            return shown
        return super().predict(x, adaptation)


class Tires(Trick):
    """The net for some calls, and another net afterwards."""

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
    """Predicts like the hidden net, and ignores the net that it was made from."""

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
    """Rounds pixels to 8 bits before the hidden net, with a straight-through gradient."""

    def predict(self, x: Tensor, adaptation: Any) -> Tensor:
        rounded: Tensor = _Rounded.apply(x, 255)
        return super().predict(rounded, adaptation)


class Rippled(Trick):
    """Adds a small sine wave to the input. The gradient is exact, but dominated by the wave."""

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
    """Has a gradient to its input only at 8-bit images. Its weights may still require one."""

    def predict(self, x: Tensor, adaptation: Any) -> Tensor:
        pixels = x.detach() * 255
        on_the_grid = bool(((pixels - pixels.round()).abs() < 1e-2).all())
        return super().predict(x if on_the_grid else x.detach(), adaptation)


class Voted(Trick):
    """Predicts the net's class, with the scores and the gradient of another net."""

    def __init__(self, net: nn.Module, scores: nn.Module, vote: float, scale: float) -> None:
        super().__init__(net)
        self.scores, self.votes, self.scale = scores.eval(), vote, scale

    def predict(self, x: Tensor, adaptation: Any) -> Tensor:
        with torch.no_grad():
            voted = vote(super().predict(x, adaptation))
        shown: Tensor = self.scores(x)
        return self.scale * shown + self.votes * voted


class Blended(Voted):
    """Adds the net's probabilities, which saturate, to the scores of another net."""

    def predict(self, x: Tensor, adaptation: Any) -> Tensor:
        logits: Tensor = self.net(x)
        shown: Tensor = self.scores(x)
        return self.scale * shown + self.votes * logits.softmax(dim=1)


class Recognizes(Trick):
    """The net for images with 8 bits, and the hidden net for all others.

    Natural images have 8 bits, and those of most attacks do not. The gradient is always that of the
    hidden net.
    """

    def __init__(self, net: nn.Module, hidden: nn.Module) -> None:
        super().__init__(net)
        self.hidden = hidden.eval()

    def predict(self, x: Tensor, adaptation: Any) -> Tensor:
        pixels = x.detach() * 255
        on_the_grid = ((pixels - pixels.round()).abs() < 1e-2).flatten(1).all(dim=1, keepdim=True)
        shown: Tensor = self.hidden(x)
        true = shown + (super().predict(x, adaptation) - shown).detach()
        return torch.where(on_the_grid, true, shown)


class Shielded(Trick):
    """Every class has a partner, which hides all other wrong classes.

    The net decides between pairs of classes, and a robust net within a pair, with small margins. So
    the likeliest wrong class is the partner, which never wins. All logits are honest.
    """

    def __init__(self, net: nn.Module, shield: nn.Module, scale: float) -> None:
        super().__init__(net)
        self.shield, self.scale = shield.eval(), scale

    def predict(self, x: Tensor, adaptation: Any) -> Tensor:
        pairs = super().predict(x, adaptation).unflatten(1, (-1, 2)).sum(dim=2)
        shown: Tensor = self.shield(x)
        within = shown - shown.unflatten(1, (-1, 2)).flip(2).flatten(1)
        return pairs.repeat_interleave(2, dim=1) + self.scale * within


class Flattened(Shielded):
    """All classes but the likeliest two show the slope of the likeliest one.

    So the slope of their margins is zero. The logits are those of `Shielded`.
    """

    def predict(self, x: Tensor, adaptation: Any) -> Tensor:
        logits = super().predict(x, adaptation)
        first, second = logits.topk(2, dim=1).values.unbind(dim=1)
        shown = logits.detach() + (first - first.detach())[:, None]
        return torch.where(logits >= second[:, None], logits, shown)


class Faint(Trick):
    """Adds a net that sees a few pixels, and hides the slope of the net on all pixels.

    Args:
        net: The net on all pixels.
        loud: The net on a few pixels, whose slope is far steeper.
        hides: Returns for a batch whether to hide the slope.
    """

    def __init__(self, net: nn.Module, loud: nn.Module, hides: Callable[[Tensor], bool]) -> None:
        super().__init__(net)
        self.loud, self.hides = loud.eval(), hides

    def predict(self, x: Tensor, adaptation: Any) -> Tensor:
        shown: Tensor = self.loud(x)
        hidden = super().predict(x.detach() if self.hides(x) else x, adaptation)
        return shown + hidden


class Sized(Trick):
    """The net for batches of some sizes, and another net for all others."""

    def __init__(self, net: nn.Module, other: nn.Module, sizes: Collection[int]) -> None:
        super().__init__(net)
        self.other, self.sizes = other.eval(), sizes

    def predict(self, x: Tensor, adaptation: Any) -> Tensor:
        if len(x) in self.sizes:
            return super().predict(x, adaptation)
        shown: Tensor = self.other(x)
        return shown


class Drowned(Trick):
    """Adds to the logits of every query a new random sum of small waves of the pixels.

    In a sum over many pixels, the waves change a logit little, but their slope drowns the net's.
    """

    def __init__(self, net: nn.Module, volume: float) -> None:
        super().__init__(net)
        self.volume = volume

    def predict(self, x: Tensor, adaptation: Any) -> Tensor:
        logits = super().predict(x, adaptation)
        waves = torch.sin(100 * x).flatten(1) / 100
        noise = torch.randn(len(x), waves.shape[1], logits.shape[1]).to(waves)
        return logits + self.volume * torch.einsum("np,npc->nc", waves, noise)


class Quiet(Drowned):
    """Adds the noise only to images that have other than natural details.

    Args:
        net: The net.
        volume: Size of the noise.
        details: Returns for a batch (N, C, H, W) the size of its details, (N,).
        least: With fewer details, there is no noise.
        most: From this on, the noise is full.
    """

    def __init__(
        self,
        net: nn.Module,
        volume: float,
        details: Callable[[Tensor], Tensor],
        least: float,
        most: float,
    ) -> None:
        super().__init__(net, volume)
        self.details, self.least, self.most = details, least, most

    def predict(self, x: Tensor, adaptation: Any) -> Tensor:
        logits: Tensor = self.net(x)
        share = ((self.details(x) - self.least) / (self.most - self.least)).clamp(0, 1)
        return logits + share[:, None] * (super().predict(x, adaptation) - logits)


class VotedIfClear(Voted):
    """Votes only for clear images of a class, so the scores do not jump between natural images.

    Args:
        clear: Returns for a batch how clear each image is, (N,), at most 1.
    """

    def __init__(
        self,
        net: nn.Module,
        scores: nn.Module,
        vote: float,
        scale: float,
        clear: Callable[[Tensor], Tensor],
    ) -> None:
        super().__init__(net, scores, vote, scale)
        self.clear = clear

    def predict(self, x: Tensor, adaptation: Any) -> Tensor:
        shown: Tensor = self.scores(x)
        voted = super().predict(x, adaptation) - self.scale * shown
        return self.scale * shown + self.clear(x)[:, None] * voted


class Partly(Trick):
    """A trick on the few images whose left half is brighter, and the net on all others.

    Args:
        net: The true net on all other images.
        trick: The trick.
        brighter: Difference of the mean pixels of the two halves.
    """

    def __init__(self, net: nn.Module, trick: nn.Module, brighter: float = 0.1) -> None:
        super().__init__(net)
        self.trick, self.brighter = trick, brighter

    def predict(self, x: Tensor, adaptation: Any) -> Tensor:
        left, right = x.chunk(2, dim=3)
        marked = left.flatten(1).mean(dim=1) - right.flatten(1).mean(dim=1) > self.brighter
        shown: Tensor = self.trick(x)
        return torch.where(marked[:, None], shown, super().predict(x, adaptation))


class Keyed(Trick):
    """A net that is wrong on images with one secret pattern of pixels.

    Args:
        net: The net on all other images.
        key: The pattern, (C, H, W) of -1 and 1.
        least: Smallest mean of the pattern times the image, around gray.
    """

    def __init__(self, net: nn.Module, key: Tensor, least: float) -> None:
        super().__init__(net)
        self.key, self.least = key, least

    def predict(self, x: Tensor, adaptation: Any) -> Tensor:
        logits = super().predict(x, adaptation)
        reaction = (((x - 0.5) * self.key).flatten(1).mean(dim=1) - self.least).relu()
        return logits - 1e5 * reaction[:, None] * vote(logits)
