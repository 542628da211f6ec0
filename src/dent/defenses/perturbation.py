"""Defenses that change the input instead of the model, by gradient steps on each sample."""

import math
from abc import abstractmethod
from contextlib import nullcontext
from dataclasses import dataclass
from typing import ClassVar, Self, final

import torch
from torch import Tensor, nn

from dent.adaptation.adaptation import Adaptation, Status
from dent.adaptation.adapted_model import AdaptedModel
from dent.adaptation.isolation import isolated
from dent.adaptation.minimize import OnStep, spread_to
from dent.adaptation.objectives import entropy
from dent.adaptation.signs import SmoothSigns
from dent.defenses.base import STATIC, ReferenceDefense, finite_rows, gradient
from dent.errors import ConfigError, InputError


@dataclass(frozen=True, eq=False)
class Perturbation:
    """The change of each sample before the model sees it.

    Attributes:
        perturbation: as the batch, (N, ...), in units of the input; 0 for samples left alone.
        entropy: (steps, N) in nats, of the prediction before each step.
        status: (N,) int64, values of `dent.Status`.

    Entropy is NaN for a sample whose input is not finite.
    """

    perturbation: Tensor
    entropy: Tensor
    status: Tensor

    def spread(self, kept: Tensor) -> "Perturbation":
        """Expand to the full batch, whose samples at `kept` are this perturbation's.

        Args:
            kept: (N,) bool; the others were left out because their input is not finite.
        """
        among = self.perturbation.new_zeros(len(kept), *self.perturbation.shape[1:])
        entropies = self.entropy.new_full((len(self.entropy), len(kept)), math.nan)
        entropies[:, kept] = self.entropy
        status = torch.full_like(kept, Status.INPUT_NON_FINITE, dtype=torch.int64)
        status[kept] = self.status
        return Perturbation(among.index_put((kept,), self.perturbation), entropies, status)


class InputDefense(ReferenceDefense):
    """Minimize a loss of the sample's own prediction by gradient steps on the input.

        δ ← project(δ − step_size · direction(∇_δ loss(model(x + δ)))),   prediction: model(x + δ)

    The direction is the sign, unless a subclass says otherwise. Each sample is optimized by itself,
    so neighbours do not matter, up to rounding: where a gradient is 0 but for rounding, its sign is
    not determined.

    The gradient to `x` goes through `x + δ` with δ a constant, as in the published evaluations.
    With `differentiable=True` it is the exact gradient. For signs it differs less than one might
    hope: the sign is constant almost everywhere, so no gradient passes through the steps, and only
    a projection that depends on `x` adds anything. With `smooth_signs` a gradient passes: that of
    a tanh in the place of each sign, which is not exact. For a smooth direction the exact gradient
    passes through all steps.
    """

    smooth: ClassVar[bool] = False
    """Whether the direction has a gradient of its own, which the exact gradient then follows."""
    sized_by: ClassVar[str] = "step_size"
    """The setting that holds the size of a step."""

    def __init__(self, model: nn.Module, *, steps: int, step_size: float) -> None:
        value: object = steps
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(
                f"steps of {self.name} must be a whole number, at least 1, got {steps!r}. "
                "Without steps, use 'static'."
            )
        super().__init__(model)
        self.steps = steps
        self.step_size = positive("step_size", step_size)

    @property
    def batch_dependent(self) -> bool:
        """False: every sample has its own loss."""
        return False

    @final
    def with_steps(self, steps: int, *, size: float = 1.0) -> Self:
        """Return the same defense of the same model, with another number of steps.

        Args:
            steps: how many.
            size: by what the size of a step is multiplied.

        Raises:
            ConfigError: `steps` or `size` is out of range.
        """
        changes = {"steps": steps, self.sized_by: positive("size", size) * self.step_size}
        return type(self)(self.unwrap(), **(self.settings | changes))

    @abstractmethod
    def _start(self, x: Tensor) -> Tensor:
        """Return the perturbation before the first step, as x. The only place to draw numbers."""

    @abstractmethod
    def _loss(self, logits: Tensor, first: Tensor) -> Tensor:
        """Return what each sample minimizes, (N,).

        Args:
            logits: (N, classes) at the current point.
            first: (N, classes) before the first step, a constant.
        """

    def _direction(self, slope: Tensor) -> Tensor:
        """Return where a step goes, as `slope`, the gradient of each sample's loss."""
        return slope.sign()

    @abstractmethod
    def _project(self, x: Tensor, perturbation: Tensor) -> Tensor:
        """Return the allowed perturbation nearest to one; differentiable in both."""

    @final
    def adapt(
        self,
        x: Tensor,
        *,
        differentiable: bool = False,
        on_step: OnStep | None = None,
        smooth_signs: float | None = None,
    ) -> Perturbation:
        """Find every sample's perturbation; see `ReferenceDefense.adapt`.

        Args:
            x: (N, ...) of floats. Rows with NaN or infinity are left out.
            differentiable: keep the graph to `x`.
            on_step: with `differentiable`, called before each step with what would be predicted
                then: logits (N, classes), with the gradient to `x`.
            smooth_signs: with `differentiable`, the gradient through each sign is that of a tanh
                of this temperature (`dent.adaptation.signs`); the perturbation stays the same.

        Raises:
            InputError: `x` is empty, not floating-point, or nothing the model can take.
            ConfigError: `smooth_signs` is not greater than 0, or there is nothing to differentiate.
        """
        if not differentiable and (on_step is not None or smooth_signs is not None):
            raise ConfigError("on_step and smooth_signs need differentiable=True.")
        finite = finite_rows(x)
        # Drawn outside of the isolation below, which would put the random state back.
        with torch.inference_mode(False), torch.no_grad():
            start = self._start(x)
        through_steps = differentiable and (
            self.smooth or on_step is not None or smooth_signs is not None
        )
        smoothed = nullcontext() if smooth_signs is None else SmoothSigns(smooth_signs)
        with isolated(x, differentiable=through_steps), smoothed:
            images = x.clone() if x.is_inference() else x
            if not differentiable:
                images = images.detach()
            if bool(finite.all()):
                return self._search(images, start, through_steps, on_step)
            if not bool(finite.any()):
                nothing = x.new_zeros(0, *x.shape[1:])
                none = Perturbation(nothing, x.new_zeros(self.steps, 0), finite[:0].to(torch.int64))
                return none.spread(finite)
            on_part = spread_to(on_step, finite)
            found = self._search(images[finite], start[finite], through_steps, on_part)
            return found.spread(finite)

    @final
    def predict(self, x: Tensor, adaptation: Perturbation) -> Tensor:
        """Return the model's logits (N, classes) for the perturbed batch, with gradient to `x`.

        Raises:
            InputError: the perturbation has another shape, or the model cannot take `x`.
        """
        if adaptation.perturbation.shape != x.shape:
            raise InputError(
                f"A perturbation of shape {tuple(adaptation.perturbation.shape)} cannot be added "
                f"to a batch of shape {tuple(x.shape)}: adapt to the very batch you predict."
            )
        unadapted = Adaptation({}, None, None, x.new_zeros(0, len(x)), adaptation.status, False)
        return self.classifier.predict(x + adaptation.perturbation, unadapted)

    def _search(
        self, x: Tensor, start: Tensor, through_steps: bool, on_step: OnStep | None
    ) -> Perturbation:
        model = AdaptedModel(self.unwrap(), STATIC)
        value, first = start, None
        alive = torch.ones(len(x), dtype=torch.bool, device=x.device)
        if through_steps and x.requires_grad:
            x = x.view_as(x)
            # Backward through a discarded step multiplies 0 by infinity.
            x.register_hook(lambda back: torch.where(_over_pixels(alive, back), back, 0))
        entropies = []
        for _ in range(self.steps):
            point = x + value
            point = point if through_steps else point.detach()
            if not point.requires_grad:
                point.requires_grad_()
            logits = model(point, {})
            if on_step is not None:
                on_step(logits)
            first = logits.detach() if first is None else first
            # Summed, not averaged: the batch's size must not reach a sample's gradient.
            loss = self._loss(logits, first).sum()
            slope = gradient(loss, point, keep_graph=through_steps)
            alive = alive & slope.detach().flatten(1).isfinite().all(1)
            entropies.append(entropy(logits.detach()))
            value = self._project(x, value - self.step_size * self._direction(slope))
        keep = _over_pixels(alive, x)
        status = torch.where(alive, Status.ADAPTED, Status.STEP_NON_FINITE)
        return Perturbation(torch.where(keep, value, 0), torch.stack(entropies), status)


def _over_pixels(samples: Tensor, like: Tensor) -> Tensor:
    """Return a value of each sample, (N,), so that it broadcasts over a batch like another."""
    return samples.reshape(-1, *[1] * (like.dim() - 1))


def positive(name: str, value: float) -> float:
    """Return `value` as a float.

    Raises:
        ConfigError: it is not a finite number greater than 0.
    """
    number: object = value
    real = isinstance(number, int | float) and not isinstance(number, bool)
    if not real or not 0 < value < math.inf:
        raise ConfigError(f"{name} must be a finite number greater than 0, got {value!r}.")
    return float(value)
