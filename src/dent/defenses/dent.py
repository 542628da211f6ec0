"""Dent: a defense that adapts a trained classifier to every batch before it predicts."""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from typing import Any, Self, TypeVar
from weakref import WeakSet

import torch
from torch import Tensor, nn

from dent.adaptation.adaptation import Adaptation
from dent.adaptation.adapted_model import AdaptedModel, eager, norm_parameters
from dent.adaptation.isolation import isolated
from dent.adaptation.lookalikes import unadapted
from dent.adaptation.minimize import OnStep, minimize, over_finite_rows
from dent.adaptation.moving import running_statistics
from dent.adaptation.prefix import Prefix
from dent.adaptation.supported import check_supported
from dent.adaptation.trial import FirstBatchChecks
from dent.adaptation.views import predict
from dent.config import DENT_PLUS, DentConfig, preset
from dent.defenses.batch_check import NO_GRAPH, check_batch, refuse_recording
from dent.errors import (
    CompileWarning,
    ConfigError,
    ExportError,
    InputError,
    UnadaptedLayersWarning,
    UnsupportedModelError,
)
from dent.performance import Performance
from dent.support.plural import counted, listed
from dent.support.predictions import is_prediction
from dent.support.warned import warn

_DISABLED: ContextVar[tuple[WeakSet[nn.Module], ...]] = ContextVar("dent_disabled", default=())
"""For each `Dent.disabled` that this context is in, the defenses that it disables."""

_STATIC = DentConfig(steps=0)
_FASTEST = Performance()

_COMPILED = ", compiled by Performance(compile=True)"

Found = TypeVar("Found")


class Dent(nn.Module):
    """A dynamic defense that wraps a classifier (paper section 3.2).

    Every call starts from the trained parameters, adapts to its batch, predicts, and discards the
    adaptation. It never writes to the model and always runs it in eval mode. Weights are constants:
    gradients reach only the input.

    Args:
        model: takes a batch (N, ...) and returns logits (N, classes). It is not changed. If you
            change its weights later, the defense changes, too.
        config: the configuration of the defense. The paper's are `DENT`, `DENT_PLUS` and
            `DENT_NOMINAL`, or by name `"dent"`, `"dent+"` and `"dent-nominal"`. The default is
            dent+, because batch-wise dent with 30 steps lowers the accuracy of adversarially
            trained models (docs/configuration.md).
        performance: how to compute it; by default the fastest way with the same predictions.

    Raises:
        UnsupportedModelError: `config` finds nothing to adapt in `model`, or cannot run it.
        UnknownNameError: no configuration has the name `config`.
        ConfigError: `config` is not a `DentConfig`, or `performance` is not a `Performance`.

    Example:
        >>> defended = Dent(model)
        >>> logits = defended(images)
    """

    def __init__(
        self,
        model: nn.Module,
        config: DentConfig | str = DENT_PLUS,
        performance: Performance = _FASTEST,
    ) -> None:
        super().__init__()
        config = preset(config) if isinstance(config, str) else config
        if not isinstance(config, DentConfig):
            raise ConfigError(
                f"Dent expected a DentConfig, got {config!r}: pass 'dent+', 'dent', "
                "'dent-nominal', DentConfig(...), or DentConfig.from_dict(...) of a mapping."
            )
        if not isinstance(performance, Performance):
            raise ConfigError(f"Dent expected a Performance(...), got {performance!r}.")
        check_supported(model, config)
        if any(isinstance(module, Dent) for module in model.modules()):
            raise UnsupportedModelError(
                f"Dent cannot wrap a {type(model).__name__} that already contains a Dent: wrap "
                "what its unwrap() returns."
            )
        missed = unadapted(eager(model)) if config.adapt_affine and config.steps else None
        if missed:
            warn(f"Of {type(model).__name__}, {missed}", UnadaptedLayersWarning)
        self.model = model
        self.config = config
        self.performance = performance
        self._compiles = performance.compile
        self._first_batch = FirstBatchChecks()
        # Dent ignores this flag. But attack libraries warn about training mode, or "restore" it in
        # the wrapped model.
        self.training = model.training

    @property
    def batch_dependent(self) -> bool:
        """Whether a prediction can depend on the other members of the batch."""
        return self.config.batch_dependent

    @property
    def steps(self) -> int:
        """The number of steps for every batch."""
        return self.config.steps

    def with_steps(self, steps: int, *, size: float = 1.0) -> "Dent":
        """Return the same defense of the same model, with another number of steps.

        Args:
            steps: how many.
            size: factor by which the learning rates are multiplied.

        Raises:
            ConfigError: `steps` or `size` is out of range.
        """
        variant = copy.copy(self)  # the model was checked in __init__
        variant.config = self.config.with_steps(steps, size=size)
        check_supported(self.model, variant.config)
        return variant

    def forward(self, x: Tensor) -> Tensor:
        """Adapt to `x` and predict: `predict(x, adapt(x))`. If disabled, run the static model.

        The gradient to `x` passes only through the final forward. For the exact gradient use
        `adapt(x, differentiable=True)`.

        Args:
            x: (N, ...), one batch.

        Returns:
            Logits (N, classes), with rows of NaN as in `predict`; if disabled, the model's logits.
        """
        if any(self in disabled for disabled in _DISABLED.get()):
            check_batch(x, "Dent")
            finite, pixels = _finite_rows(x)
            self._first_batch.run(self.model, _STATIC, x if finite is None else x[finite], pixels)
            adapted = AdaptedModel(self.model, _STATIC, shares_generators=True)
            return adapted(x, {})  # bit-equal to the model
        return self.predict(x, self.adapt(x))

    def adapt(
        self,
        x: Tensor,
        *,
        differentiable: bool = False,
        last: int | None = None,
        checkpointed: bool = False,
        on_step: OnStep | None = None,
    ) -> Adaptation:
        """Adapt to a batch and return the adaptation. Nothing else changes.

        Parameters, buffers, training flags, `requires_grad`, `.grad` and the random state stay the
        same.

        Args:
            x: (N, ...) of floats. Rows with NaN or infinity are left out of the batch.
            differentiable: keep the graph of all steps to `x`, so that predictions with the result
                have their exact gradient. Memory then grows with `steps`.
            last: with `differentiable`, keep the graph of only this many last steps. The result of
                earlier steps counts as constant.
            checkpointed: with `differentiable`, let memory grow with the square root of `steps`,
                and compute every step twice. The gradient is the same, but cannot be
                differentiated again.
            on_step: with `differentiable`, called before each step whose graph is kept, with the
                prediction at that point: logits (N, classes), with the exact gradient to `x`.

        Raises:
            InputError: `x` is empty, not floating-point, or not valid for the model.
            ConfigError: `last` is negative, or `last`, `checkpointed` or `on_step` is given without
                `differentiable`.
            ExportError: a static graph is being recorded (torch.jit.trace, torch.export, ONNX).
            UnsupportedModelError: on the first batch, a private copy does not give the model's
                outputs, or these are not logits; or a gradient is cut, or a normalization layer
                cannot take one scale and shift per sample.
        """
        refuse_recording("Dent", _COMPILED)
        check_batch(x, "Dent")
        if last is not None and last < 0:
            raise ConfigError(f"last must be a number of steps, at least 0, got {last!r}.")
        if not differentiable and (last is not None or checkpointed or on_step is not None):
            raise ConfigError("last, checkpointed and on_step need differentiable=True.")
        with isolated(x, differentiable=differentiable):
            finite, pixels = _finite_rows(x)
            images = x if finite is None else x[finite]
            self._first_batch.run(self.model, self.config, images, pixels)
            self._first_batch.warn_of_one_sample(self.model, self.config, images)
            self._first_batch.warn_of_precision(self.performance, images)
            if not differentiable:
                images = images.clone() if images.is_inference() else images.detach()

            prefix = self._prefix()

            def run(model: AdaptedModel) -> Adaptation:
                return minimize(
                    model,
                    norm_parameters(self.model, self.config.last_layers),
                    self.config,
                    images,
                    differentiable=differentiable,
                    last_steps=last,
                    checkpointed=checkpointed,
                    on_step=over_finite_rows(on_step, finite),
                    running=self._running(),
                )

            adaptation = (
                run(self._adapted(prefix)) if differentiable else self._fastest(run, prefix)
            )
            if self.config.last_layers is not None:
                adaptation = replace(adaptation, _prefix=prefix)
            return adaptation if finite is None else adaptation.spread(finite)

    def predict(self, x: Tensor, adaptation: Adaptation) -> Tensor:
        """Return logits (N, classes) for `x` under an adaptation, with gradient to `x`.

        Args:
            x: (N, ...). Rows with NaN or infinity get NaN logits and affect no other row. Rows
                whose largest logit is not finite also get NaN logits, because they are not
                predictions.
            adaptation: from `adapt`. A sample-wise adaptation must have N samples.

        Raises:
            InputError: the adaptation is from another defense or for another number of samples, or
                `x` is not valid for the model.
            UnsupportedModelError: on the first batch, for the reasons in `adapt`.
        """
        check_batch(x, "Dent")
        self._check_adaptation(adaptation, len(x))
        finite, pixels = _finite_rows(x)
        self._first_batch.run(self.model, self.config, x if finite is None else x[finite], pixels)
        if finite is None:
            return _predictions(self._logits(x, adaptation))
        if not finite.any():  # only to count the classes; batch statistics need two rows
            logits = AdaptedModel(self.model, _STATIC)(x.new_zeros(2, *x.shape[1:]), {})
            return logits.new_full((len(x), logits.shape[1]), torch.nan)
        logits = _predictions(self._logits(x[finite], adaptation.take(finite)))
        nothing = logits.new_full((len(x), logits.shape[1]), torch.nan)
        return nothing.index_put((finite,), logits)

    def _running(self) -> dict[str, Tensor]:
        return running_statistics(eager(self.model)) if self.config.moves_statistics else {}

    def _prefix(self) -> Prefix:
        if self.config.last_layers is None:
            return Prefix()
        return Prefix(eager(self.model), self.config.statistics)

    def _adapted(self, prefix: Prefix, *, predicts: bool = False) -> AdaptedModel:
        eagerly = replace(self.performance, compile=False)
        return self._model_with(eagerly, prefix, predicts=predicts)

    def _model_with(
        self, performance: Performance, prefix: Prefix | None, *, predicts: bool
    ) -> AdaptedModel:
        return AdaptedModel(
            self.model,
            self.config,
            performance,
            prefix,
            row_orders=self._first_batch.row_orders,
            shares_generators=predicts,
        )

    def _logits(self, x: Tensor, adaptation: Adaptation) -> Tensor:
        def run(model: AdaptedModel) -> Tensor:
            answer = partial(
                model,
                parameters=adaptation.parameters,
                smoothing=adaptation.smoothing,
                statistics=adaptation.statistics,
            )
            return predict(answer, x, self.config.views)

        prefix = adaptation._prefix
        if prefix is None or not prefix.serves(eager(self.model), self.config.statistics):
            prefix = Prefix()
        moved = adaptation.statistics.values()
        inputs = [x, adaptation.smoothing, *adaptation.parameters.values(), *moved]
        needs_gradient = any(value is not None and value.requires_grad for value in inputs)
        if needs_gradient and torch.is_grad_enabled():
            return run(self._adapted(prefix, predicts=True))
        return self._fastest(run, prefix, predicts=True)

    def _fastest(
        self, run: Callable[[AdaptedModel], Found], prefix: Prefix, *, predicts: bool = False
    ) -> Found:
        """Return the result of `run` on the compiled model or, if that fails, uncompiled.

        A model may keep its own random generators. They advance when it predicts, as they would
        without the defense, and not when it adapts.
        """
        if not self._compiles:
            return run(self._adapted(prefix, predicts=predicts))
        try:
            return run(self._model_with(self.performance, None, predicts=predicts))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            # If the model or the batch is at fault, this raises the error.
            result = run(self._adapted(prefix, predicts=predicts))
            self._compiles = False
            reason = " ".join(str(error.__cause__ or error).split("\n")[:2]).strip()
            warn(
                f"{type(self.model).__name__} could not be compiled, so its defense runs "
                "uncompiled, with the same predictions. Set Performance(compile=False), or fix: "
                f"{reason}",
                CompileWarning,
            )
            return result

    def _check_adaptation(self, adaptation: Adaptation, samples: int) -> None:
        # Otherwise parts of another defense's adaptation would be ignored without an error.
        if not isinstance(adaptation, Adaptation):
            raise InputError(
                f"Dent expected an Adaptation, got {type(adaptation).__name__}: pass what adapt(x) "
                "returned."
            )
        config, sample_wise = self.config, self.config.granularity == "sample"
        kind = config.smoothing.covariance if config.smoothing else None
        expected = norm_parameters(self.model, config.last_layers) if config.adapt_affine else {}
        names = adaptation.parameters.keys()  # without parameters, the unadapted model predicts
        shares = (adaptation.sample_wise, adaptation.covariance_kind) == (sample_wise, kind)
        if not shares or (names and names != expected.keys()):
            raise InputError(
                f"An adaptation with sample_wise={adaptation.sample_wise}, smoothing "
                f"{adaptation.covariance_kind} and {listed(names, 1) or 'no parameters'} cannot "
                f"predict with a defense of sample_wise={sample_wise}, smoothing {kind} and "
                f"{listed(expected, 1) or 'no parameters'}: predict with the defense that adapted."
            )
        if sample_wise and adaptation.batch_size != samples:
            raise InputError(
                f"A sample-wise adaptation to {counted(adaptation.batch_size, 'sample')} "
                "cannot predict "
                f"{samples}: adapt to the very batch you predict."
            )

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Make the defense compute the static model within this context and thread.

        The same holds for copies of it that are made within the context, and for what `with_steps`
        returns there.
        """
        disabled: WeakSet[nn.Module] = WeakSet([self])
        token = _DISABLED.set((*_DISABLED.get(), disabled))
        try:
            yield
        finally:
            _DISABLED.reset(token)

    def __copy__(self) -> Self:
        """Return a copy that shares the model, disabled where this defense is."""
        return self._copied(type(self).__new__(type(self)), lambda state: state)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return a copy that has its own model, disabled where this defense is."""
        memo[id(self)] = copied = type(self).__new__(type(self))
        return self._copied(copied, lambda state: copy.deepcopy(state, memo))

    def _copied(self, copied: Self, duplicate: Callable[[Any], Any]) -> Self:
        source: Any = self
        target: Any = copied
        target.__setstate__(duplicate(source.__getstate__()))
        for disabled in _DISABLED.get():
            if self in disabled:
                disabled.add(copied)
        return copied

    def unwrap(self) -> nn.Module:
        """Return the model, unchanged."""
        return self.model

    def extra_repr(self) -> str:
        """Show the configuration."""
        return repr(self.config)

    def __prepare_scriptable__(self) -> "Dent":
        """Refuse torch.jit.script, which asks every module for this first.

        Raises:
            ExportError: always.
        """
        raise ExportError(NO_GRAPH.format(name="Dent", compiled=_COMPILED))


def _predictions(logits: Tensor) -> Tensor:
    """Set every row that is not a prediction to NaN, so that infinity is not read as a class."""
    return torch.where(is_prediction(logits).unsqueeze(1), logits, torch.nan)


def _finite_rows(x: Tensor) -> tuple[Tensor | None, tuple[float, float]]:
    """Return the finite rows of a batch and its range of values.

    Reads a finite batch only once, because every read waits for the GPU.

    Returns:
        Which rows are finite, (N,) bool, or None if all are; and the smallest and the largest value
        of the finite rows.
    """
    pixels = _ends(x)
    if all(map(math.isfinite, pixels)):  # with a NaN, both ends are NaN
        return None, pixels
    finite = x.detach().flatten(1).isfinite().all(1)
    remaining = x[finite]
    return finite, _ends(remaining) if len(remaining) else (0.0, 0.0)


def _ends(x: Tensor) -> tuple[float, float]:
    low, high = torch.stack(x.detach().aminmax()).tolist()
    return low, high
