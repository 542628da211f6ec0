"""A few questions to a defense about one batch, from which most diagnostics are read."""

import torch
import torch.nn.functional as F
from torch import Tensor

from dent.attacks import Defense, answer
from dent.attacks.base import isolated_random_state
from dent.attacks.losses import margin
from dent.evaluation.probe.gradient_check import exact_view
from dent.evaluation.records.plan import seed_of
from dent.evaluation.records.schema import Comparison
from dent.evaluation.submission.fresh import Origin, footprint
from dent.evaluation.submission.submission import Submission, apart, submit
from dent.support.devices import wide

_FEW = 16
_TINY = 1e-12
_PAIR = 2
"""Members asked about over and over: some defenses do not answer about one alone."""
_FEW_CALLS = 12
"""Questions after which a copy must not have changed, if nothing in it moves."""
_MANY_CALLS = 600
"""Questions to a copy in which something does move."""


class Probe:
    """Asks a defense about one batch; what is asked is small beside any attack on it.

    Two whole batches are submitted, and a few members some times, each to a copy that has answered
    nothing; two members are submitted many times to another copy, to see what becomes of it.

    Args:
        origin: Whom to ask.
        x: The first batch of the run, (N, C, H, W).
        y: Its labels.
        bounds: Smallest and largest value of a pixel, for the noise.
        seed: Of everything random.

    Attributes:
        first: The copy that answered the whole batch.
        calls: Questions so far to the copy that is asked many.
    """

    def __init__(
        self, origin: Origin, x: Tensor, y: Tensor, bounds: tuple[float, float], seed: int
    ) -> None:
        self._origin = origin
        self._x, self._y = x, y
        self._bounds = bounds
        self._seed = seed
        self.members = few_of(len(x))
        self.first = origin.new(seed_of(seed, 0))
        self._whole = submit(self.first.defense, x, seed=seed_of(seed, 0))
        self._few = self._ask(x[: self.members])
        self.calls = 0

    def repeated(self) -> Comparison:
        """The same few members, drawn for anew."""
        return self._compare(self._few, self._ask(self._x[: self.members], seed=1))

    def again(self) -> tuple[Comparison, float | None]:
        """The same few members and seed, asked of a copy that has answered many questions.

        Returns:
            What the answers have in common, and how far the gradients lie apart, relative to their
            length; None where there is none.
        """
        seed, few = seed_of(self._seed, 0), self._x[: self.members]
        old = self._origin.new(seed)
        marks: list[int] = []
        while self.calls < (_FEW_CALLS if len(set(marks)) == 1 else _MANY_CALLS):
            submit(old.defense, self._x[:_PAIR], seed=seed)
            self.calls += 1
            if self.calls in (_FEW_CALLS // 2, _FEW_CALLS):
                marks.append(footprint(old.defense))
        # Twice: what alternates may by chance answer as at first.
        old.reseed(seed)
        answered = [submit(old.defense, few, seed=seed)]
        old.reseed(seed)
        answered.append(submit(old.defense, few, seed=seed))
        old.reseed(seed)
        before, after = (self._gradient(each.defense) for each in (self._origin.new(seed), old))
        distance: float | None = None
        if before is not None and after is not None:
            size = wide(before).norm().clamp(min=_TINY)
            distance = float((wide(before) - wide(after)).norm() / size)
        elif (before is None) != (after is None):
            distance = 1.0
        found = [self._compare(self._few, each) for each in answered]
        unlike = [each for each in found if each.distance is None]
        return max(unlike or found, key=lambda each: each.distance or 0.0), distance

    def _gradient(self, defense: Defense) -> Tensor | None:
        """Of the few members' margins, NaN as 0; None where there is none."""
        x, y = self._x[: self.members], self._y[: self.members]
        with (
            isolated_random_state(seed_of(self._seed, 0), x.device),
            torch.inference_mode(mode=False),
            torch.enable_grad(),
        ):
            leaf = x.detach().clone().requires_grad_()
            logits = exact_view(defense)(leaf)
            if not logits.requires_grad:
                return None
            found: Tensor | None = torch.autograd.grad(
                margin(logits, y).sum(), leaf, allow_unused=True
            )[0]
        return None if found is None else found.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)

    def alone(self) -> Comparison | None:
        """A few members, without the rest of their batch."""
        return self._compare(self._whole, self._few) if self.members < len(self._x) else None

    def strangers(self) -> Comparison | None:
        """A few members, with black and white noise in the place of the rest."""
        if self.members == len(self._x):
            return None
        low, high = self._bounds
        draws = torch.Generator().manual_seed(seed_of(self._seed, "noise"))
        noise = torch.rand(self._x[self.members :].shape, generator=draws).round().to(self._x)
        mixed = torch.cat([self._x[: self.members], low + (high - low) * noise])
        return self._compare(self._whole, self._ask(mixed), self.members)

    def permuted(self) -> Comparison | None:
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
        defense = self._origin.new(seed_of(self._seed, 0)).defense
        with isolated_random_state(seed_of(self._seed, 0), x.device), torch.enable_grad():
            leaf = x.detach().clone().requires_grad_()
            logits = answer(defense, leaf)
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

    def _ask(self, x: Tensor, seed: int = 0) -> Submission:
        seed = seed_of(self._seed, seed)
        return submit(self._origin.new(seed).defense, x, seed=seed)

    def _compare(
        self, one: Submission, other: Submission, members: int | None = None, *, turn: bool = False
    ) -> Comparison:
        """What the answers to the members that both batches start with have in common."""
        count = members or min(len(one.predictions), len(other.predictions))
        before, after = one.logits[:count], other.logits[:count]
        if turn:
            after = after.flip(0)
        return Comparison(
            members=count,
            changed=int((_classes(before) != _classes(after)).sum()),
            distance=apart(before, after),
        )


def few_of(size: int) -> int:
    """How many members of a batch of this size are asked about apart from the others."""
    return max(1, min(size // 2, _FEW))


def _classes(logits: Tensor) -> Tensor:
    """Per row the class; -1 where it is no prediction."""
    return torch.where(logits.isfinite().all(dim=1), logits.argmax(dim=1), -1)
