"""A few questions to a defense about one batch, from which most diagnostics are read."""

import torch
import torch.nn.functional as F
from torch import Tensor

from dent.attacks import Defense, answer
from dent.attacks.base import isolated_random_state
from dent.devices import wide
from dent.evaluation.plan import seed_of
from dent.evaluation.records import Company
from dent.evaluation.serving import Served, reset, serve

_FEW = 16
_TINY = 1e-12


class Probe:
    """Asks a defense about one batch; what is asked is small beside any attack on it.

    Two whole batches are submitted, and a few members six times, once with a gradient.

    Args:
        defense: Whom to ask.
        x: The first batch of the run, (N, C, H, W).
        y: Its labels.
        bounds: Smallest and largest value of a pixel, for the noise.
        seed: Of everything random.
    """

    def __init__(
        self, defense: Defense, x: Tensor, y: Tensor, bounds: tuple[float, float], seed: int
    ) -> None:
        self._defense = defense
        self._x, self._y = x, y
        self._bounds = bounds
        self._seed = seed
        self.members = few_of(len(x))
        reset(defense)
        self._whole = self._ask(x)
        self._few = self._ask(x[: self.members])

    def repeated(self) -> Company:
        """The same few members, drawn for anew."""
        return self._compare(self._few, self._ask(self._x[: self.members], seed=1))

    def again(self) -> Company:
        """The same few members and seed, once others have been asked about."""
        return self._compare(self._few, self._ask(self._x[: self.members]))

    def alone(self) -> Company | None:
        """A few members, without the rest of their batch."""
        return self._compare(self._whole, self._few) if self.members < len(self._x) else None

    def strangers(self) -> Company | None:
        """A few members, with black and white noise in the place of the rest."""
        if self.members == len(self._x):
            return None
        low, high = self._bounds
        draws = torch.Generator().manual_seed(seed_of(self._seed, "noise"))
        noise = torch.rand(self._x[self.members :].shape, generator=draws).round().to(self._x)
        mixed = torch.cat([self._x[: self.members], low + (high - low) * noise])
        return self._compare(self._whole, self._ask(mixed), self.members)

    def permuted(self) -> Company | None:
        """A few members in reverse order."""
        if self.members < 2:
            return None
        turned = self._ask(self._x[: self.members].flip(0))
        return self._compare(self._few, turned, turn=True)

    def probabilities(self) -> int:
        """How many rows of the whole batch are probabilities rather than logits."""
        rows = wide(self._whole.logits)
        inside = ((rows >= 0) & (rows <= 1)).all(dim=1)
        return int((inside & ((rows.sum(dim=1) - 1).abs() < 1e-4)).sum())

    def gradients(self) -> tuple[int, int | None]:
        """Members predicted correctly, and how many of them have no gradient to their input.

        None where the answer is no differentiable function of the input at all.
        """
        x, y = self._x[: self.members], self._y[: self.members]
        reset(self._defense)
        with isolated_random_state(seed_of(self._seed, 0), x.device), torch.enable_grad():
            leaf = x.detach().clone().requires_grad_()
            logits = answer(self._defense, leaf)
            right = logits.detach().argmax(dim=1) == y
            if not logits.requires_grad:
                return int(right.sum()), None
            loss = F.cross_entropy(logits.float(), y, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, leaf, allow_unused=True)
        if gradient is None:  # a gradient to the weights, and none to the input
            return int(right.sum()), None
        rows = gradient.flatten(1)
        useless = (rows == 0).all(dim=1) | ~rows.isfinite().all(dim=1)
        return int(right.sum()), int((useless & right).sum())

    def _ask(self, x: Tensor, seed: int = 0) -> Served:
        return serve(self._defense, x, seed=seed_of(self._seed, seed))

    def _compare(
        self, one: Served, other: Served, members: int | None = None, *, turn: bool = False
    ) -> Company:
        """What the answers to the members that both batches start with have in common."""
        count = members or min(len(one.predictions), len(other.predictions))
        first, second = one.logits[:count], other.logits[:count]
        if turn:
            second = second.flip(0)
        # A member without a prediction both times is answered alike.
        neither = ~(first.isfinite().all(dim=1) | second.isfinite().all(dim=1)).unsqueeze(1)
        before, after = (_centred(each.masked_fill(neither, 0.0)) for each in (first, second))
        apart = (before - after).abs().amax() / before.abs().amax().clamp(min=_TINY)
        return Company(
            members=count,
            changed=int((before.argmax(dim=1) != after.argmax(dim=1)).sum()),
            distance=float(apart) if bool(apart.isfinite()) else None,
        )


def few_of(size: int) -> int:
    """How many members of a batch of this size are asked about apart from the others."""
    return max(1, min(size // 2, _FEW))


def _centred(logits: Tensor) -> Tensor:
    """Logits less their mean over classes, which says nothing about the prediction."""
    logits = wide(logits)
    return logits - logits.mean(dim=1, keepdim=True)
