"""Defenses that change the input, not the model, by gradient steps on each sample."""

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
from dent.adaptation.minimize import OnStep, gradients, over_finite_rows
from dent.adaptation.objectives import entropy
from dent.adaptation.signs import SmoothSigns
from dent.defenses.base import STATIC, ReferenceDefense, check_adaptation, finite_rows
from dent.errors import ConfigError, InputError
from dent.support.checks import is_count, read_number
from dent.support.rows import per_sample


@dataclass(frozen=True, eq=False)
class Perturbation:
    """The change to each sample before the model sees it.

    Attributes:
        perturbation: (N, ...), the shape of the batch, in units of the input; 0 for samples that
            are not changed.
        entropy: (steps, N) in nats, of the prediction before each step. NaN for a sample whose
            input is not finite.
        status: (N,) int64, values of `dent.Status`.
    """

    perturbation: Tensor
    entropy: Tensor
    status: Tensor

    def spread(self, kept: Tensor) -> "Perturbation":
        """Return the perturbation of a full batch, of which this one covers the samples at `kept`.

        Args:
            kept: (N,) bool. The other samples were left out because their input is not finite.
        """
        among = self.perturbation.new_zeros(len(kept), *self.perturbation.shape[1:])
        entropies = self.entropy.new_full((len(self.entropy), len(kept)), math.nan)
        entropies[:, kept] = self.entropy
        status = torch.full_like(kept, Status.INPUT_NON_FINITE, dtype=torch.int64)
        status[kept] = self.status
        return Perturbation(among.index_put((kept,), self.perturbation), entropies, status)


class InputDefense(ReferenceDefense):
    """A defense that minimizes a loss of its own prediction by gradient steps on the input.

        δ ← project(δ − step_size · direction(∇_δ loss(model(x + δ)))),   prediction: model(x + δ)

    The direction is the sign of the gradient, unless a subclass changes it. Each sample is
    optimized separately, so the other members do not matter, up to rounding: if a gradient is 0
    except for rounding, its sign is arbitrary.

    The gradient to `x` passes through `x + δ` with δ a constant, as in the published evaluations.
    With `differentiable=True` it is the exact gradient. With signs, this makes little difference:
    the sign is constant almost everywhere, so no gradient passes through the steps, and only a
    projection that depends on `x` contributes. With `smooth_signs` a gradient passes through the
    steps, but it is not exact: a tanh replaces each sign. With a smooth direction the exact
    gradient passes through all steps.
    """

    smooth: ClassVar[bool] = False
    """Whether the direction is differentiable: the exact gradient then passes through all steps."""
    sized_by: ClassVar[str] = "step_size"
    """The name of the setting for the step size."""

    def __init__(self, model: nn.Module, *, steps: int, step_size: float) -> None:
        if not is_count(steps):
            raise ConfigError(
                f"steps of {self.name} must be a whole number, at least 1, got {steps!r}. "
                "Without steps, use 'static'."
            )
        super().__init__(model)
        self.steps = steps
        self.step_size = read_number(self.sized_by, step_size, 0.0)

    @property
    def batch_dependent(self) -> bool:
        """False: every sample minimizes its own loss."""
        return False

    @final
    def with_steps(self, steps: int, *, size: float = 1.0) -> Self:
        """Return the same defense of the same model, with another number of steps.

        Args:
            steps: how many.
            size: factor by which the step size is multiplied.

        Raises:
            ConfigError: `steps` or `size` is out of range.
        """
        changes = {"steps": steps, self.sized_by: read_number("size", size, 0.0) * self.step_size}
        return type(self)(self.unwrap(), **(self.settings | changes))

    @abstractmethod
    def _start(self, x: Tensor) -> Tensor:
        """Return the first perturbation, shaped as `x`. Only this method may draw numbers."""

    @abstractmethod
    def _loss(self, logits: Tensor, first: Tensor) -> Tensor:
        """Return the loss that each sample minimizes, (N,).

        Args:
            logits: (N, classes) at the current point.
            first: (N, classes) before the first step, a constant.
        """

    def _direction(self, slope: Tensor) -> Tensor:
        """Return the direction that a step subtracts, shaped as `slope`, the loss gradient."""
        return slope.sign()

    @abstractmethod
    def _project(self, x: Tensor, perturbation: Tensor) -> Tensor:
        """Project a perturbation to the allowed ones; differentiable in both arguments."""

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
            on_step: with `differentiable`, called before each step with the prediction at that
                point: logits (N, classes), with the gradient to `x`.
            smooth_signs: with `differentiable`, each sign has the gradient of a tanh of this
                temperature (`dent.adaptation.signs`). The perturbation stays the same.

        Raises:
            InputError: `x` is empty, not floating-point, or not valid for the model.
            ConfigError: `smooth_signs` is not greater than 0, or `on_step` or `smooth_signs` is
                given without `differentiable`.
        """
        if not differentiable and (on_step is not None or smooth_signs is not None):
            raise ConfigError("on_step and smooth_signs need differentiable=True.")
        finite = finite_rows(x, self.name)
        # Drawn before `isolated`, which restores the random state at its end.
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
            on_part = over_finite_rows(on_step, finite)
            found = self._search(images[finite], start[finite], through_steps, on_part)
            return found.spread(finite)

    @final
    def predict(self, x: Tensor, adaptation: Perturbation) -> Tensor:
        """Return the model's logits (N, classes) for the perturbed batch, with gradient to `x`.

        Raises:
            InputError: the adaptation is no perturbation or has another shape, or `x` is not valid
                for the model.
        """
        check_adaptation(adaptation, Perturbation, self.name)
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
        """Return the perturbation after all steps from `start`, (N, C, H, W) like `x`.

        A sample whose gradient becomes non-finite gets a perturbation of 0.
        """
        model = AdaptedModel(self.unwrap(), STATIC)
        value, first = start, None
        alive = torch.ones(len(x), dtype=torch.bool, device=x.device)
        if through_steps and x.requires_grad:
            x = x.view_as(x)
            # The backward pass through a discarded step would give NaN, as 0 times infinity.
            x.register_hook(lambda back: torch.where(per_sample(alive, back), back, 0))
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
            # Summed, not averaged: a sample's gradient must not depend on the batch size.
            loss = self._loss(logits, first).sum()
            (slope,) = gradients(loss, [point], keep_graph=through_steps)
            alive = alive & slope.detach().flatten(1).isfinite().all(1)
            entropies.append(entropy(logits.detach()))
            value = self._project(x, value - self.step_size * self._direction(slope))
        keep = per_sample(alive, x)
        status = torch.where(alive, Status.ADAPTED, Status.STEP_NON_FINITE)
        return Perturbation(torch.where(keep, value, 0), torch.stack(entropies), status)
