"""Run a model with norm parameters and statistics other than its own, without writing to it.

Each adaptation works on a private copy of the model's structure, in eval mode. The copy shares the
model's weights as constants, and has its own buffers and other tensors. So the model keeps its
buffers, attributes, training flags and `requires_grad` whatever its forward does, and threads do
not interfere. A forward could still change only the parameters, by writing to them in place.
"""

import functools
import inspect
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from statistics import median
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from dent.adaptation.lookalikes import FunctionalNorms, unadapted
from dent.adaptation.moving import MovingStatistics, batch_norm_layers
from dent.adaptation.norm import (
    Affine,
    OutsideAffine,
    affine_attributes,
    affine_layers,
    norm_layers,
    own_tensor,
    registered_kind,
    use_test_statistics,
)
from dent.adaptation.prefix import Prefix, patched_modules
from dent.adaptation.private_copy import private_copy
from dent.adaptation.random_state import get_state, kept_generators, set_state
from dent.adaptation.recomputation import Recomputation
from dent.adaptation.smoothing import smooth
from dent.config import Covariance, DentConfig
from dent.errors import ConfigError, InputError, UnsupportedModelError
from dent.outputs import advice as wrapping
from dent.outputs import described
from dent.performance import Performance

_REFUSED = {
    nn.DataParallel: "wrap its .module, then put DataParallel around the Dent",
    nn.parallel.DistributedDataParallel: "wrap its .module",
    torch.jit.ScriptModule: "wrap the model it was scripted from: its layers cannot be replaced",
}

_RECOMPILE_LIMIT = 64
"""Largest number of models, configurations and shapes that a process compiles."""

_GROUP_NORM_CRASHES = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 14)
"""Before 2.14, PyTorch crashes the process when it computes only the gradient of GroupNorm's scale
and shift for a channels-last input."""

_NARROW = 16
"""Median output channels below which a model's convolutions are no faster channels-last."""
_WEIGHTS_A_PIXEL = 3000
"""Convolution weights per pixel of a batch, above which reordering the weights costs more than
channels-last saves. Both limits are measured (docs/speed.md)."""

FEW_ROWS = 8
"""Samples on which the memory formats are compared; all if the model cannot take so few."""
_REFUSED_CHANNELS_LAST: WeakSet[nn.Module] = WeakSet()
"""Models whose forward on channels-last images failed or returned other outputs."""
_CHECKED_CHANNELS_LAST: WeakSet[nn.Module] = WeakSet()
"""Models that returned the same outputs, up to rounding, in both memory formats."""


def eager(model: nn.Module) -> nn.Module:
    """Return the module that torch.compile wrapped, or the module itself."""
    # Check the class, which is loaded if any module is compiled. Another wrapper may also have
    # `_orig_mod`, but do more than run it.
    compiler = sys.modules.get("torch._dynamo.eval_frame")
    while compiler is not None and isinstance(model, compiler.OptimizedModule):
        model = model._modules["_orig_mod"]
    return model


def norm_parameters(model: nn.Module, last_layers: int | None = None) -> dict[str, Tensor]:
    """Return the scales and shifts of the (last) normalization layers by dotted name.

    A shared tensor is returned once, under its first name.

    Args:
        model: any module.
        last_layers: number of layers with parameters, counted from the last registered; None: all.
    """
    layers = affine_layers(eager(model))
    names = _names(layers)
    return {
        names[id(tensor)]: tensor
        for _, parameters in layers[-(last_layers or 0) :]
        for _, tensor in parameters
    }


def _names(layers: Sequence[tuple[str, Sequence[tuple[str, Tensor]]]]) -> dict[int, str]:
    """Map the identity of every scale and shift to its first dotted name."""
    names: dict[int, str] = {}
    for layer_name, parameters in layers:
        for attribute, tensor in parameters:
            names.setdefault(id(tensor), f"{layer_name}.{attribute}".lstrip("."))
    return names


def check_supported(model: nn.Module, config: DentConfig) -> None:
    """Check that the defense `config` can run on `model` and has something to adapt in it.

    Raises:
        UnsupportedModelError: it cannot; the message says what was found and what would work.
    """
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(f"Dent expected a torch.nn.Module, got {type(model).__name__}.")
    for kind, advice in _REFUSED.items():
        if isinstance(model, kind):
            raise UnsupportedModelError(f"Dent cannot wrap a {type(model).__name__}: {advice}.")
    model = eager(model)
    _check_initialized(model)
    layers = dict(norm_layers(model))
    if config.steps:
        _check_differentiable(model)
    _check_layers(model, layers, config)
    for name, layer in layers.items():
        if (
            config.statistics != "train"
            and registered_kind(layer) is not None
            and own_tensor(layer, "running_mean") is not None
        ):
            raise UnsupportedModelError(
                f"Layer {name!r} ({type(layer).__name__}) has running statistics, and its "
                "registered kind does not say how to normalize by the batch's own. "
                "Configure statistics='train', or make it a torch.nn.BatchNorm2d."
            )
        if (
            config.statistics != "test"
            and isinstance(layer, nn.modules.batchnorm._BatchNorm)
            and layer.running_mean is None
        ):
            raise UnsupportedModelError(
                f"Layer {name!r} ({type(layer).__name__}) keeps no running statistics, so there "
                "are no train statistics to normalize by. Configure statistics='test'."
            )
        if (
            config.statistics == "moving"
            and isinstance(layer, nn.modules.instancenorm._InstanceNorm)
            and layer.running_mean is not None
        ):
            raise UnsupportedModelError(
                f"Layer {name!r} ({type(layer).__name__}) has running statistics, and "
                "statistics='moving' moves those of BatchNorm alone. Configure 'train' or 'test'."
            )
    private_copy(model)


def _check_initialized(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if any(map(is_lazy, [*module._parameters.values(), *module._buffers.values()])):
            raise UnsupportedModelError(
                f"Layer {name!r} ({type(module).__name__}) is not initialized yet: run one batch "
                "through the model before wrapping it."
            )


def _check_differentiable(model: nn.Module) -> None:
    # Running a batch would not show this: a quantized layer returns a gradient of 0 and warns.
    for name, module in model.named_modules():
        if type(module).__module__.startswith(
            ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")
        ):
            raise UnsupportedModelError(
                f"Layer {name!r} ({type(module).__name__}) is quantized, and PyTorch has no "
                "gradient through it: wrap the model before it is quantized. For speed there is "
                "Performance(precision='bfloat16')."
            )


def _check_layers(model: nn.Module, layers: dict[str, nn.Module], config: DentConfig) -> None:
    needs_affine = config.adapt_affine and config.steps > 0
    affine_count = len(affine_layers(model))
    if needs_affine and not affine_count:
        layer_types = sorted({type(layer).__name__ for layer in layers.values()})
        module_types = sorted({type(module).__name__ for module in model.modules()})
        what = (
            f"its normalization layers ({', '.join(layer_types)}) have no scale or shift"
            if layer_types
            else f"it has no normalization layer; its modules are {', '.join(module_types)}"
        )
        unknown = unadapted(model)
        what += f". {unknown.removesuffix('.')}" if unknown else ""
        raise UnsupportedModelError(
            f"Dent adapts the scale and shift of BatchNorm, LayerNorm, GroupNorm, InstanceNorm or "
            f"RMSNorm, and {type(model).__name__} has none to adapt: {what}. Was BatchNorm fused "
            "into the convolutions? Then wrap the model before that. For a model without such "
            "layers, adapt the input alone: DentConfig(adapt_affine=False, "
            "smoothing=SmoothingConfig(sigma=0.5))."
        )
    if config.last_layers is not None and config.last_layers > affine_count:
        raise UnsupportedModelError(
            f"last_layers={config.last_layers}, but {type(model).__name__} has {affine_count} "
            "normalization layers with a scale or shift: set at most so many, or None for all."
        )
    test_statistics = config.statistics == "test" and not config.steps
    statistics_only = test_statistics and not config.smoothing and not config.views
    if statistics_only and not any(
        layer._buffers.get("running_mean") is not None for layer in layers.values()
    ):
        raise UnsupportedModelError(
            f"steps=0 with test statistics replaces running statistics, and no layer of "
            f"{type(model).__name__} keeps any: the defense would be the static model."
        )


class AdaptedModel:
    """A model that runs with given norm parameters, statistics and smoothing.

    Args:
        model: any supported module; never written to.
        config: determines granularity, statistics and the kind of smoothing.
        performance: determines memory format, precision and whether to compile.
        prefix: cache of the layers before the first adapted one, used if `config.last_layers` is
            set; not for compiled models.
        shares_generators: draw from the random generators that the model keeps, which then advance.
    """

    def __init__(
        self,
        model: nn.Module,
        config: DentConfig,
        performance: Performance | None = None,
        prefix: Prefix | None = None,
        *,
        shares_generators: bool = False,
    ) -> None:
        self._model = model = eager(model)
        self._shares_generators = shares_generators
        self._learns = config.steps > 0
        self._kind: Covariance | None = config.smoothing.covariance if config.smoothing else None
        self._sample_wise = config.granularity == "sample"
        self._test_statistics = config.statistics == "test"
        self._moves = config.moves_statistics
        self._performance = performance or Performance(memory_format="preserve")
        self._last_layers = config.last_layers
        self._prefix = prefix
        self._pixels_for_channels_last = _pixels_for_channels_last(model)
        self._copied: tuple[Tensor, int, Tensor, int, bool] | None = None
        self._bound: Mapping[str, Tensor] = {}
        self._recomputation = Recomputation()
        self._copy()

    def _copy(self) -> None:
        """Make a new private copy, and bind its layers."""
        self._module = private_copy(self._model, shares_generators=self._shares_generators)
        self._weights_channels_last = False
        # Found first, so that hooks registered below do not count.
        patched = set() if self._prefix is None else patched_modules(self._module)
        names = _names(affine_layers(self._model))
        copies = dict(norm_layers(self._module))
        if _GROUP_NORM_CRASHES:
            for layer in copies.values():
                if isinstance(layer, nn.GroupNorm):
                    layer.register_forward_pre_hook(_laid_plainly)
        self._bindings: list[tuple[nn.Module, str, str, torch.dtype]] = []
        self._outside: dict[nn.Module, OutsideAffine] = {}
        for layer_name, layer in norm_layers(self._model):
            kind = registered_kind(layer)
            if kind is not None:
                self._outside[copies[layer_name]] = OutsideAffine(copies[layer_name], kind)
            for attribute, tensor in affine_attributes(layer):
                binding = (copies[layer_name], attribute, names[id(tensor)], tensor.dtype)
                self._bindings.append(binding)
            if self._test_statistics:
                use_test_statistics(copies[layer_name])
        self._moving = MovingStatistics(batch_norm_layers(self._module)) if self._moves else None
        if self._prefix is not None and self._last_layers is not None:
            adapted = norm_parameters(self._model, self._last_layers)
            bound = {layer for layer, _, name, _ in self._bindings if name in adapted}
            self._prefix.attach(self._module, bound, patched)

    def __call__(
        self,
        x: Tensor,
        parameters: Mapping[str, Tensor],
        smoothing: Tensor | None = None,
        statistics: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Return logits (N, C) for x (N, ...).

        Args:
            x: one batch; not modified, even by a model that works in place.
            parameters: scales and shifts by dotted name: (*shape), or (N or 1, *shape) if the
                granularity is "sample". Layers not named keep their own.
            smoothing: the smoothing's parameter, or None to leave x as it is.
            statistics: if the running statistics move, the statistics to normalize by, by dotted
                name; layers not named keep their own. None: the batch's, as in a step.

        Raises:
            InputError: the model cannot take x.
            UnsupportedModelError: the model returns something other than logits (N, C), or a single
                logit although the defense takes steps.
            ConfigError: channels-last was requested, and the model's outputs depend on it.
        """
        channels_last = self._prefers_channels_last(x) and self._answers_alike(x)
        self._recomputation.stop()
        if self._recomputation.found and parameters is not self._bound:
            self._copy_again()
        self._bound = parameters
        try:
            logits = self._run(x, parameters, smoothing, statistics, channels_last=channels_last)
        except InputError:
            if not channels_last or self._performance.memory_format != "auto":
                raise
            self._copy()
            logits = self._run(x, parameters, smoothing, statistics, channels_last=False)
            _REFUSED_CHANNELS_LAST.add(self._model)
        if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(x):
            how = wrapping(logits) or " Wrap the model so that forward returns them."
            raise UnsupportedModelError(
                f"Dent expected {type(self._module).__name__} to return logits of shape "
                f"({len(x)}, classes), got {described(logits)}.{how}"
            )
        if self._learns and logits.shape[1] < 2:
            raise UnsupportedModelError(
                f"{type(self._module).__name__} returns a single logit, and the entropy of one "
                "class is always 0: no step would move anything. For two classes, wrap it in a "
                "model that returns two logits: torch.cat([torch.zeros_like(z), z], 1)."
            )
        if x.requires_grad and any(value.requires_grad for value in parameters.values()):
            self._recomputation.watch(self._module)  # a later step may need the graph of this one
        return logits if self._performance.precision == "model" else logits.to(x.dtype)

    def _copy_again(self) -> None:
        """Leave the present copy, as it is bound, to the graph, and continue on another.

        The backward pass of a model with activation checkpointing runs its layers again. They must
        then have the parameters of their own step, not those of the last one.
        """
        states = [get_state(generator) for generator in kept_generators(self._module)]
        self._copy()
        for generator, state in zip(kept_generators(self._module), states, strict=False):
            set_state(generator, state)

    @contextmanager
    def noting_functions(self) -> Iterator[FunctionalNorms]:
        """Note the normalization functions that the model calls outside of its layers."""
        noted = FunctionalNorms(self._module)
        # The compiler would trace the notes, too.
        compiled = any(eager(module) is not module for module in self._module.modules())
        with nullcontext() if compiled else noted:
            yield noted

    def moved(self, statistics: Mapping[str, Tensor], step: int) -> dict[str, Tensor]:
        """Return running statistics after the last step; see `MovingStatistics.moved`."""
        return {} if self._moving is None else self._moving.moved(statistics, step)

    def _run(
        self,
        x: Tensor,
        parameters: Mapping[str, Tensor],
        smoothing: Tensor | None,
        statistics: Mapping[str, Tensor] | None,
        *,
        channels_last: bool,
    ) -> Any:
        self._bind(parameters)
        if self._moving is not None:
            self._moving.give(statistics)
        try:
            images = smooth(x, smoothing, self._kind) if smoothing is not None and self._kind else x
            images = self._owned(images, channels_last=channels_last)
            if channels_last and not self._weights_channels_last:
                _reorder_weights(self._module)
                self._weights_channels_last = True
            with self._autocast(x):
                if self._performance.compile:
                    return _compiled()(self._module, images)
                return self._module(images)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, AssertionError, IndexError) as error:
            if isinstance(error, InputError | UnsupportedModelError):
                raise
            raise InputError(self._refusal(x, error)) from error
        finally:
            if self._moving is not None:
                self._moving.end()

    def _owned(self, x: Tensor, *, channels_last: bool) -> Tensor:
        """Return a copy of `x` that a model may write to in place.

        With `last_layers`, the same batch gives the same copy as long as neither was written to.
        The prefix then recognizes its input by identity. To compare values, it would have to wait
        for the GPU at every step.
        """
        inference = x.is_inference() or torch.is_inference_mode_enabled()  # writes would not show
        if self._last_layers is None or x.requires_grad or inference:
            return _own(x, channels_last=channels_last)
        if self._copied is not None:
            given, version, copied, copied_version, layout = self._copied
            if (given is x and layout == channels_last) and (x._version, copied._version) == (
                version,
                copied_version,
            ):
                return copied
        copied = _own(x, channels_last=channels_last)
        self._copied = (x, x._version, copied, copied._version, channels_last)
        return copied

    def _prefers_channels_last(self, x: Tensor) -> bool:
        memory_format = self._performance.memory_format
        if x.dim() != 4 or memory_format != "auto":
            return x.dim() == 4 and memory_format == "channels-last"
        if len(x) == 1:  # torch's CPU backward of normalization misreads some such tensors
            return False
        pixels = x.numel() // x.shape[1]
        suits = x.device.type == "cpu" and pixels >= self._pixels_for_channels_last
        return suits and self._model not in _REFUSED_CHANNELS_LAST

    def _answers_alike(self, x: Tensor) -> bool:
        """Return whether channels-last changes only rounding; checked once per model.

        Also true if the model fails on `x`: its own forward pass then reports the error.

        Raises:
            ConfigError: it changes more, and the user requested channels-last.
        """
        if self._model in _CHECKED_CHANNELS_LAST:
            return True
        with self._autocast(x):
            few = _alike(self._model, x[:FEW_ROWS].detach())
            alike = _alike(self._model, x.detach()) if few is None else few
        if alike:
            _CHECKED_CHANNELS_LAST.add(self._model)
        elif alike is not None:
            if self._performance.memory_format != "auto":
                raise ConfigError(
                    f"{type(self._model).__name__} answers otherwise where images lie "
                    "channels-last in memory: it reads strides, or draws random numbers in the "
                    'order of memory. Use memory_format="preserve".'
                )
            _REFUSED_CHANNELS_LAST.add(self._model)
        return alike is not False

    def _autocast(self, x: Tensor) -> AbstractContextManager[Any]:
        if self._performance.precision == "model":
            return nullcontext()
        return torch.autocast(x.device.type, torch.bfloat16)

    def _bind(self, parameters: Mapping[str, Tensor]) -> None:
        for layer, attribute, name, dtype in self._bindings:
            if name not in parameters:
                continue
            value: Any = parameters[name]
            if self._sample_wise or value.dtype != dtype:
                rows = value if self._sample_wise else value.unsqueeze(0)
                value = Affine(rows)
                if layer in self._outside:
                    like = torch.empty(rows.shape[1:], dtype=dtype, device=rows.device)
                    value = self._outside[layer].neutral(attribute, rows, like)
            # Not setattr: a module refuses a registered parameter that is not an nn.Parameter.
            layer._parameters.pop(attribute, None)
            layer._buffers.pop(attribute, None)
            vars(layer)[attribute] = value

    def _refusal(self, x: Tensor, error: Exception) -> str:
        parameter = next((p for p in self._module.parameters() if p.is_floating_point()), None)
        model = (
            ""
            if parameter is None
            else f" whose weights are {parameter.dtype} on {parameter.device}"
        )
        return (
            f"{type(self._module).__name__}{model} could not take a batch of shape "
            f"{tuple(x.shape)}, {x.dtype} on {x.device}: {error}{_advice(error)}"
        )


def _advice(error: Exception) -> str:
    """Return advice if an error shows that the model takes gradients in its own forward."""
    if "does not require grad" not in str(error):
        return ""
    return (
        ". It seems to take gradients itself, and dent calls models under torch.no_grad(): compute "
        "them within `with torch.enable_grad():`, and give a defense of your own the methods adapt "
        "and predict (docs/defenses.md#your-own)"
    )


def _pixels_for_channels_last(model: nn.Module) -> float:
    """Return the pixels per batch above which channels-last is faster on a CPU."""
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    if (
        not convolutions
        or median(convolution.out_channels for convolution in convolutions) < _NARROW
    ):
        return math.inf
    return sum(convolution.weight.numel() for convolution in convolutions) / _WEIGHTS_A_PIXEL


def _reorder_weights(module: nn.Module) -> None:
    """Convert a private copy's convolution weights to channels-last, once for all forwards."""
    for layer in module.modules():
        weight = layer._parameters.get("weight")
        if isinstance(layer, nn.Conv2d) and layer.groups == 1 and weight is not None:
            layer._parameters["weight"] = weight.contiguous(memory_format=torch.channels_last)  # type: ignore[assignment]


@torch.no_grad()
def _alike(model: nn.Module, x: Tensor) -> bool | None:
    """Return whether both memory formats give the same output up to rounding.

    None if the model fails or returns no tensor.
    """
    answers = []
    for channels_last in (True, False):
        module = private_copy(model)
        if channels_last:
            _reorder_weights(module)
        # The same random numbers for both; the caller restores the state.
        seed = torch.get_rng_state()
        try:
            answers.append(module(_own(x, channels_last=channels_last)))
        except (RuntimeError, ValueError, AssertionError, IndexError):
            return None  # the model's own forward pass reports this error
        finally:
            torch.set_rng_state(seed)
    if not all(isinstance(answer, Tensor) for answer in answers):
        return None
    ordered, plain = answers
    rounding = math.sqrt(torch.finfo(plain.dtype).eps) * float(plain.abs().nan_to_num().max())
    return torch.allclose(ordered, plain, rtol=0.0, atol=rounding, equal_nan=True)


def _own(x: Tensor, *, channels_last: bool) -> Tensor:
    """Return a copy of `x`, in a memory format, that a model may write to in place."""
    if not channels_last:
        return x.clone()
    if x.requires_grad:
        # Return the gradient in the default memory format: attacks call its .view().
        x = x.view_as(x)
        x.register_hook(_contiguous)
    return x.clone(memory_format=torch.channels_last)


def _contiguous(gradient: Tensor | None) -> Tensor | None:
    # None if no output depends on x: PyTorch calls the hook anyway.
    return None if gradient is None else gradient.contiguous()


def _laid_plainly(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Make the inputs of a layer contiguous in the default memory format."""
    return tuple(tensor.contiguous() for tensor in inputs)


def _call(module: nn.Module, x: Tensor) -> Any:
    return module(x)


@functools.cache
def _compiled() -> Callable[[nn.Module, Tensor], Any]:
    """Return `_call` compiled: the module is an argument, so that private copies share the code."""
    options: dict[str, Any] = {"fullgraph": True, "dynamic": False}
    if "recompile_limit" in inspect.signature(torch.compile).parameters:
        options["recompile_limit"] = _RECOMPILE_LIMIT
        return torch.compile(_call, **options)
    compiled: Callable[[nn.Module, Tensor], Any] = torch.compile(_call, **options)
    config: Any = torch._dynamo.config
    limit = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"

    def within_the_limit(module: nn.Module, x: Tensor) -> Any:
        with config.patch({limit: _RECOMPILE_LIMIT}):  # only for our code, not the user's
            return compiled(module, x)

    return within_the_limit
