"""Tent as published: it keeps adapting from batch to batch (Wang et al., ICLR 2021)."""

from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from dent.adaptation.adaptation import Adaptation, Status
from dent.adaptation.adapted_model import AdaptedModel, norm_parameters
from dent.adaptation.isolation import isolated
from dent.adaptation.minimize import OnStep, gradients, over_finite_rows
from dent.adaptation.objectives import entropy, loss
from dent.adaptation.optim import State, make_optimizer
from dent.adaptation.values import flatten, unflatten
from dent.config import DentConfig
from dent.defenses.base import ReferenceDefense, finite_rows
from dent.errors import ConfigError

TENT = DentConfig(steps=1, statistics="test")
"""Adam, lr 1e-3, one step per batch, test statistics: the authors' CIFAR-10 configuration."""


class TentState(NamedTuple):
    """The state of tent after the batches so far: a value that is never written to."""

    parameters: Tensor
    """All scales and shifts as one vector, (D,)."""
    optimizer: State
    """The optimizer's state: its step and its moving averages."""


class TentOnline(ReferenceDefense):
    """A stateful defense that minimizes the entropy of each batch's predictions.

        prediction: model(x; θ),   then   θ ← θ − Adam(∇_θ mean entropy(model(x; θ)))

    for θ the scales and shifts of the normalization layers, by default with test statistics. As
    published, a batch is predicted by the parameters before its last step, so with one step, a
    batch affects only the predictions of later batches. Every `adapt` (and so every call) changes
    the state, including an attacker's queries. A prediction therefore depends on all earlier
    batches and on their order. The defense is not thread-safe.

    The wrapped model is not written to: this object holds the state, outside of `state_dict()`.

    Source: Wang, Shelhamer, Liu, Olshausen and Darrell, "Tent: Fully Test-Time Adaptation by
    Entropy Minimization", and the authors' code. The authors' code adapts only BatchNorm2d. This
    class adapts every kind of normalization layer that `Dent` adapts.

    Args:
        model: the classifier.
        config: batch-wise, at least one step, adapts scales and shifts, moves no statistics, no
            smoothing, no views.

    Raises:
        ConfigError: `config` is no `DentConfig` that meets these conditions.
        UnsupportedModelError: the model has nothing to adapt.
    """

    name: ClassVar[str] = "tent-online"

    def __init__(self, model: nn.Module, config: DentConfig = TENT) -> None:
        if not isinstance(config, DentConfig):
            raise ConfigError(
                f"tent-online expected a DentConfig, got {config!r}: pass TENT, or "
                "DentConfig(steps=1, statistics='test') with your own changes."
            )
        if (
            config.granularity != "batch"
            or config.steps < 1
            or config.smoothing is not None
            or config.views is not None
            or not config.adapt_affine
            or config.statistics == "moving"
        ):
            raise ConfigError(
                "tent-online needs granularity='batch', steps of at least 1, adapt_affine=True, "
                f"statistics 'train' or 'test', no smoothing and no views, got {config!r}."
            )
        super().__init__(model, config)
        self.config = config
        self._state: TentState | None = None

    @property
    def batch_dependent(self) -> bool:
        """True: all members share the parameters and the statistics."""
        return True

    @property
    def stateful(self) -> bool:
        """True: parameters carry over from batch to batch."""
        return True

    @property
    def settings(self) -> dict[str, Any]:
        """The fields of the configuration."""
        return self.config.to_dict()

    def reset(self) -> None:
        """Return to the trained parameters and a fresh optimizer."""
        self._state = None

    def snapshot(self) -> TentState | None:
        """Return the state, for `restore`; None if no batch has changed it."""
        return self._state

    def restore(self, state: TentState | None) -> None:
        """Return to a state from `snapshot`."""
        self._state = state

    def adapt(
        self, x: Tensor, *, differentiable: bool = False, on_step: OnStep | None = None
    ) -> Adaptation:
        """Take the steps of a batch, update the state, and return the batch's adaptation.

        If a step becomes non-finite, the state stays as it was.

        Args:
            x: (N, ...) of floats. Rows with NaN or infinity are left out of the batch.
            differentiable: keep the graph to `x` of all steps except the last, which does not
                affect this batch's prediction. The state that carries over is always a constant.
            on_step: with `differentiable`, called before each step with the prediction at that
                point: logits (N, classes), with the gradient to `x`.

        Raises:
            InputError: `x` is empty, not floating-point, or not valid for the model.
            ConfigError: `on_step` is given without `differentiable`.
        """
        if on_step is not None and not differentiable:
            raise ConfigError("on_step needs differentiable=True.")
        finite = finite_rows(x, self.name)
        with isolated(x, differentiable=differentiable):
            images = x.clone() if x.is_inference() else x
            images = images if differentiable else images.detach()
            if bool(finite.all()):
                return self._steps(images, differentiable, on_step)
            on_part = over_finite_rows(on_step, finite)
            return self._steps(images[finite], differentiable, on_part).spread(finite)

    def predict(self, x: Tensor, adaptation: Adaptation) -> Tensor:
        """Return logits (N, classes) under the adaptation's parameters, with gradient to `x`."""
        return self.classifier.predict(x, adaptation)

    def _steps(self, x: Tensor, differentiable: bool, on_step: OnStep | None) -> Adaptation:
        """Take the steps on one batch (N, ...), from the state that earlier batches left.

        If a step is non-finite, the state stays as it was.
        """
        model = AdaptedModel(self.unwrap(), self.config)
        trained = norm_parameters(self.unwrap(), self.config.last_layers)
        optimizer = make_optimizer(self.config, self.config.lr)
        start = self._current(trained)
        used, (value, memory) = start.parameters, start
        entropies = []
        for _ in range(self.config.steps if len(x) else 0):
            used = value.requires_grad_()
            logits = model(x, unflatten(used, trained))
            if on_step is not None:
                on_step(logits)
            objective = loss(logits, self.config.objective, self.config.reduction)
            (slope,) = gradients(objective, [used], keep_graph=differentiable)
            with torch.set_grad_enabled(differentiable):
                value, memory = optimizer.step(used, slope, memory)
            entropies.append(entropy(logits.detach()))
        finite = bool(value.detach().isfinite().all())
        if finite:
            averages = tuple(average.detach() for average in memory.averages)
            self._state = TentState(value.detach(), State(memory.step, averages))
        entropy_by_step = (
            torch.stack(entropies) if entropies else x.new_zeros(self.config.steps, len(x))
        )
        blamed = ~entropy_by_step.isfinite().all(0)
        failed = torch.where(blamed | ~blamed.any(), Status.STEP_NON_FINITE, Status.REVERTED)
        used = used if finite else start.parameters
        return Adaptation(
            parameters=unflatten(used if differentiable else used.detach(), trained),
            smoothing=None,
            covariance_kind=None,
            entropy=entropy_by_step,
            status=torch.full_like(failed, Status.ADAPTED) if finite else failed,
            sample_wise=False,
        )

    def _current(self, trained: dict[str, Tensor]) -> TentState:
        """Return the state to start from, detached, on the model's device."""
        fresh = flatten(trained)
        if self._state is None:
            optimizer = make_optimizer(self.config, self.config.lr)
            return TentState(fresh, optimizer.init(fresh))
        averages = tuple(average.to(fresh) for average in self._state.optimizer.averages)
        # A new tensor with the same data, because a step will set requires_grad on it.
        parameters = self._state.parameters.to(fresh).detach()
        return TentState(parameters, State(self._state.optimizer.step, averages))
