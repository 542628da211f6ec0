"""Run a model with norm parameters and statistics other than its own, without writing to it.

Each adaptation works on a private copy of the model's structure, in eval mode. The copy shares the
model's weights as constants, and has its own buffers and other tensors. So the model keeps its
buffers, attributes, training flags and `requires_grad` whatever its forward does, and threads do
not interfere. A forward could still change only the parameters, by writing to them in place.
"""

import functools
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dent.adaptation.autocast import autocast_for
from dent.adaptation.functional_norms import FunctionalNorms
from dent.adaptation.isolation import isolated
from dent.adaptation.memory_format import (
    MemoryFormatChoice,
    own_copy,
    plain_norms,
    reorder_weights,
)
from dent.adaptation.moving import MovingStatistics, batch_norm_layers
from dent.adaptation.norm import (
    Affine,
    OutsideAffine,
    UnknownOrderError,
    affine_attributes,
    affine_layers,
    norm_layers,
    registered_kind,
    use_test_statistics,
)
from dent.adaptation.prefix import Prefix, patched_modules
from dent.adaptation.private_copy import private_copy
from dent.adaptation.random_state import get_state, kept_generators, set_state
from dent.adaptation.recomputation import Recomputation
from dent.adaptation.row_orders import RowOrders
from dent.adaptation.smoothing import smooth
from dent.adaptation.untraced import untraced
from dent.config import Covariance, DentConfig
from dent.errors import InputError, UnsupportedModelError
from dent.outputs import advice, described
from dent.performance import Performance

_RECOMPILE_LIMIT = 64
"""Largest number of models, configurations and shapes that a process compiles."""

_ONE_FORWARD = DentConfig(steps=0, granularity="sample")

_GROUP_NORM_CRASHES = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 14)
"""Before 2.14, PyTorch crashes the process when it computes only the gradient of GroupNorm's scale
and shift for a channels-last input."""


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


class _Binding(NamedTuple):
    """A place of a private copy that holds a scale or shift.

    Attributes:
        module: the module that holds it.
        path: its dotted name.
        attribute: the attribute of the module.
        name: the dotted name of the scale or shift, which may be shared by several modules.
        dtype: its data type in the model.
    """

    module: nn.Module
    path: str
    attribute: str
    name: str
    dtype: torch.dtype


class AdaptedModel:
    """A model that runs with given norm parameters, statistics and smoothing.

    Args:
        model: any supported module; never written to.
        config: determines granularity, statistics and the kind of smoothing.
        performance: determines memory format, precision and whether to compile.
        prefix: cache of the layers before the first adapted one, used if `config.last_layers` is
            set; not for compiled models.
        row_orders: which sample each row of a layer's input belongs to, as far as it is known.
        shares_generators: draw from the random generators that the model keeps, which then advance.
    """

    def __init__(
        self,
        model: nn.Module,
        config: DentConfig,
        performance: Performance | None = None,
        prefix: Prefix | None = None,
        *,
        row_orders: RowOrders | None = None,
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
        self._row_orders = row_orders or RowOrders()
        self._memory_format = MemoryFormatChoice(model, self._performance)
        self._copied: tuple[Tensor, int, Tensor, int, bool] | None = None
        self._bound: Mapping[str, Tensor] = {}
        self._recomputation = Recomputation()
        self._noted: FunctionalNorms | None = None
        self._copy()

    def _copy(self) -> None:
        """Make a new private copy, and bind its layers."""
        self._module = private_copy(self._model, shares_generators=self._shares_generators)
        self._weights_channels_last = False
        # Found first, so that hooks registered below do not count.
        patched = set() if self._prefix is None else patched_modules(self._module)
        layers = [
            (name, layer, [*affine_attributes(layer)]) for name, layer in norm_layers(self._model)
        ]
        names = _names([(name, affine) for name, _, affine in layers])
        copies = dict(norm_layers(self._module))
        if _GROUP_NORM_CRASHES:
            for layer in copies.values():
                if isinstance(layer, nn.GroupNorm):
                    layer.register_forward_pre_hook(_laid_plainly)
        self._bindings: list[_Binding] = []
        self._outside: dict[nn.Module, OutsideAffine] = {}
        for layer_name, layer, affine in layers:
            kind = registered_kind(layer)
            if kind is not None:
                self._outside[copies[layer_name]] = OutsideAffine(copies[layer_name], kind)
            for attribute, tensor in affine:
                self._bindings.append(
                    _Binding(
                        copies[layer_name], layer_name, attribute, names[id(tensor)], tensor.dtype
                    )
                )
            if self._test_statistics:
                use_test_statistics(copies[layer_name])
        self._bind_shared(names)
        self._moving = MovingStatistics(batch_norm_layers(self._module)) if self._moves else None
        if self._prefix is not None and self._last_layers is not None:
            adapted = norm_parameters(self._model, self._last_layers)
            bound = {each.module for each in self._bindings if each.name in adapted}
            self._prefix.attach(self._module, bound, patched)
        self._note_again()

    def _bind_shared(self, names: Mapping[int, str]) -> None:
        """Bind scales and shifts also where modules other than normalization layers hold them."""
        bound = {(each.module, each.attribute) for each in self._bindings}
        both = zip(self._model.named_modules(), self._module.modules(), strict=True)
        for (path, module), copied in both:
            for attribute, tensor in module._parameters.items():
                if id(tensor) in names and (copied, attribute) not in bound and tensor is not None:
                    self._bindings.append(
                        _Binding(copied, path, attribute, names[id(tensor)], tensor.dtype)
                    )

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
            UnsupportedModelError: the model returns something other than real logits (N, C), or a
                single logit although the defense takes steps.
            ConfigError: channels-last was requested, and the model's outputs depend on it.
        """
        channels_last = self._memory_format.channels_last(x)
        self._recomputation.stop()
        if self._recomputation.found and parameters is not self._bound:
            self._copy_again()
        self._bound = parameters
        if self._sample_wise and self._row_orders.needed:
            self._find_row_orders(x, parameters)
        try:
            logits = self._run(x, parameters, smoothing, statistics, channels_last=channels_last)
        except UnknownOrderError:
            if not self._find_row_orders(x, parameters):
                raise
            self._copy()
            return self(x, parameters, smoothing, statistics)
        except InputError:
            if not channels_last or self._performance.memory_format != "auto":
                raise
            self._copy()
            logits = self._run(x, parameters, smoothing, statistics, channels_last=False)
            self._memory_format.refuse_channels_last()
        logits = self._checked(logits, x)
        if x.requires_grad and any(value.requires_grad for value in parameters.values()):
            self._recomputation.watch(self._module)  # a later step may need the graph of this one
        return logits if self._performance.precision == "model" else logits.to(x.dtype)

    def _checked(self, logits: Any, x: Tensor) -> Tensor:
        """Return the output for a batch if it is what `__call__` requires."""
        if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(x):
            how = advice(logits) or " Wrap the model so that forward returns them."
            raise UnsupportedModelError(
                f"Dent expected {type(self._module).__name__} to return logits of shape "
                f"({len(x)}, classes), got {described(logits)}.{how}"
            )
        if logits.is_complex():
            raise UnsupportedModelError(
                f"Dent expected {type(self._module).__name__} to return real logits, got "
                f"{logits.dtype}. Wrap the model so that forward returns their real part or size."
            )
        if self._learns and logits.shape[1] < 2:
            raise UnsupportedModelError(
                f"{type(self._module).__name__} returns a single logit, and the entropy of one "
                "class is always 0: no step would move anything. For two classes, wrap it in a "
                "model that returns two logits: torch.cat([torch.zeros_like(z), z], 1)."
            )
        return logits

    @untraced
    def _find_row_orders(self, x: Tensor, parameters: Mapping[str, Tensor]) -> bool:
        """Find the orders of rows for the shape of `x`; return whether that was still to be done.

        Do it before a forward that keeps a graph, if possible: hooks on saved tensors would see a
        forward that breaks off.
        """
        if self._row_orders.knows(tuple(x.shape)):
            return False
        trained = {
            name: value.detach().unsqueeze(0)
            for name, value in norm_parameters(self._model).items()
            if name in parameters
        }

        def run(images: Tensor, watching: RowOrders) -> None:
            # With running statistics, whatever the defense uses: others mix the samples.
            AdaptedModel(self._model, _ONE_FORWARD, row_orders=watching)(images, trained)

        with isolated(x, differentiable=False), torch.no_grad():
            self._row_orders.find(x, run)
        self._note_again()
        return True

    def _note_again(self) -> None:
        """Forget what other copies ran, if functions are noted."""
        if self._noted is not None:
            self._noted.watch(self._module)

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
        adapts_all = self._last_layers is None and not self._outside
        self._noted = noted = FunctionalNorms(self._module, adapts_all=adapts_all)
        # The compiler would trace the notes, too.
        compiled = any(eager(module) is not module for module in self._module.modules())
        try:
            with nullcontext() if compiled else noted:
                yield noted
        finally:
            self._noted = None

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
        self._bind(parameters, tuple(x.shape))
        if self._moving is not None:
            self._moving.give(statistics)
        try:
            images = smooth(x, smoothing, self._kind) if smoothing is not None and self._kind else x
            images = self._owned(images, channels_last=channels_last)
            if channels_last and not self._weights_channels_last:
                reorder_weights(self._module)
                self._weights_channels_last = True
            with autocast_for(self._performance, x):
                if self._performance.compile:
                    return _compiled()(self._module, images)
                with plain_norms(x):
                    return self._module(images)
        except torch.OutOfMemoryError:
            raise
        except (InputError, UnsupportedModelError):
            raise
        except Exception as error:
            if self._replaces_what_is_read(x, error):
                raise UnsupportedModelError(self._misuse(error)) from error
            if isinstance(error, RuntimeError | ValueError | AssertionError | IndexError):
                raise InputError(self._refusal(x, error)) from error
            raise
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
            return own_copy(x, channels_last=channels_last)
        if self._copied is not None:
            given, version, copied, copied_version, layout = self._copied
            if (given is x and layout == channels_last) and (x._version, copied._version) == (
                version,
                copied_version,
            ):
                return copied
        copied = own_copy(x, channels_last=channels_last)
        self._copied = (x, x._version, copied, copied._version, channels_last)
        return copied

    def _bind(self, parameters: Mapping[str, Tensor], shape: tuple[int, ...]) -> None:
        """Give the layers their scales and shifts for a batch of a shape."""
        for layer, path, attribute, name, dtype in self._bindings:
            if name not in parameters:
                continue
            value: Any = parameters[name]
            if self._sample_wise or value.dtype != dtype:
                rows = value if self._sample_wise else value.unsqueeze(0)
                value = self._row_orders.affine(path, rows, shape)
                if layer in self._outside:
                    like = torch.empty(rows.shape[1:], dtype=dtype, device=rows.device)
                    value = self._outside[layer].neutral(attribute, value, like)
            # Not setattr: a module refuses a registered parameter that is not an nn.Parameter.
            layer._parameters.pop(attribute, None)
            layer._buffers.pop(attribute, None)
            vars(layer)[attribute] = value

    def _replaces_what_is_read(self, x: Tensor, error: Exception) -> bool:
        """Return whether the model takes x, but not what the defense puts into its layers."""
        if not isinstance(error, TypeError | AttributeError) and "running_" not in str(error):
            return False
        if not self._test_statistics and not any(
            isinstance(vars(each.module).get(each.attribute), Affine) for each in self._bindings
        ):
            return False
        try:
            with torch.no_grad():
                private_copy(self._model)(x.clone())
        except Exception:  # whatever it is, the model itself raises it
            return False
        return True

    def _misuse(self, error: Exception) -> str:
        name = type(self._model).__name__
        if self._test_statistics and ("None" in str(error) or "running_" in str(error)):
            return (
                f"{name} reads the running statistics of a normalization layer, which "
                f"statistics='test' takes away: {error}. Call the layer, and let it call "
                "torch.nn.functional.batch_norm as torch.nn.BatchNorm2d does, or configure "
                "statistics='train'."
            )
        return (
            f"{name} uses a scale or shift in an operation that cannot take one per sample: "
            f"{error}. Adapt batch-wise in the layer's own precision, or use "
            "torch.nn.functional's normalization functions there."
        )

    def _refusal(self, x: Tensor, error: Exception) -> str:
        parameter = next((p for p in self._module.parameters() if p.is_floating_point()), None)
        model = (
            ""
            if parameter is None
            else f" whose weights are {parameter.dtype} on {parameter.device}"
        )
        return (
            f"{type(self._module).__name__}{model} could not take a batch of shape "
            f"{tuple(x.shape)}, {x.dtype} on {x.device}: {error}{_advice(error, x, parameter)}"
        )


def _advice(error: Exception, x: Tensor, weights: Tensor | None) -> str:
    """Return advice if the batch does not fit the weights, or the model takes gradients itself."""
    if weights is not None and x.device != weights.device:
        return f". Move the batch to the model: x.to('{weights.device}')"
    if weights is not None and x.dtype != weights.dtype:
        return f". Convert the batch: x.to({weights.dtype})"
    if "does not require grad" not in str(error):
        return ""
    return (
        ". It seems to take gradients itself, and dent calls models under torch.no_grad(): compute "
        "them within `with torch.enable_grad():`, and give a defense of your own the methods adapt "
        "and predict (docs/defenses.md#your-own)"
    )


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
