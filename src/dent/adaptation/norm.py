"""Find a model's normalization layers, and run each with parameters other than its own.

A layer's kernel takes one scale and shift per channel. To run it with one set per sample, or with
parameters of a higher precision than its activations, its `weight` and `bias` are replaced by an
`Affine`. PyTorch's normalization functions hand such an argument back to its class
(`__torch_function__`), which applies it in the layout of the function that was called. So every
subclass that calls one of these functions works, whatever else its forward does.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from dent.config import DentConfig
from dent.errors import ConfigError, UnsupportedModelError
from dent.support.plural import counted

NORM_TYPES = (_BatchNorm, _InstanceNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
"""Normalization layers that are adapted: the paper's (BatchNorm 1d/2d/3d and SyncBatchNorm) first,
then kinds that the paper does not adapt."""

Channels = Literal["second", "last"]
Order = Literal["sample-major", "sample-minor"]
"""Order of the rows of an input with k rows of each of N samples: row r belongs to sample r // k,
or to sample r % N."""


class UnknownOrderError(UnsupportedModelError):
    """It is not known which sample each row of a layer's input belongs to."""


@dataclass(frozen=True)
class NormKind:
    """How a layer of a registered kind computes: normalized * scale + shift.

    Attributes:
        scale: name of the parameter or buffer that holds the scale; None if it has no scale.
        shift: the same for the shift.
        channels: the axis of its output, (N, ...), that scale and shift belong to.
    """

    scale: str | None
    shift: str | None
    channels: Channels


_REGISTERED: Final[dict[type[nn.Module], NormKind]] = {}


def register_norm(
    kind: type[nn.Module],
    *,
    scale: str | None = "weight",
    shift: str | None = "bias",
    channels: Channels = "second",
) -> None:
    """Let every `Dent` of this process adapt your own kind of normalization layer.

    The layer must compute normalized * scale + shift. A `Dent` checks this on its first batch, and
    refuses a kind that computes something else. It also refuses a layer that lacks one of the
    attributes.

    Args:
        kind: the class of the layers; subclasses are included.
        scale: the attribute that holds the scale, a parameter or buffer; None if it has no scale.
            The attribute may itself be None in some layers of the kind.
        shift: the same for the shift.
        channels: the axis of the output that they belong to: `"second"`, as in BatchNorm, or
            `"last"`, as in LayerNorm.

    Raises:
        ConfigError: `kind` is not a class of your own layers, is adapted already, or has nothing to
            adapt, or `scale` or `shift` is no name, or `channels` is neither of the two.

    Example:
        >>> dent.register_norm(torchvision.ops.FrozenBatchNorm2d)
        >>> dent.register_norm(LlamaRMSNorm, shift=None, channels="last")
    """
    value: object = kind
    if not isinstance(value, type) or not issubclass(value, nn.Module):
        raise ConfigError(f"register_norm expected a class of torch.nn.Module, got {value!r}.")
    if issubclass(kind, NORM_TYPES):
        raise ConfigError(f"{kind.__name__} is adapted without being registered.")
    if kind is nn.Module or issubclass(kind, torch.jit.ScriptModule):
        raise ConfigError(
            f"register_norm expected the class of your own normalization layers, got "
            f"{kind.__name__}, which has other layers, too."
        )
    if channels not in ("second", "last"):
        raise ConfigError(f"channels must be 'second' or 'last', got {channels!r}.")
    for name, attribute in {"scale": scale, "shift": shift}.items():
        given: object = attribute
        if given is not None and not isinstance(given, str):
            raise ConfigError(
                f"{name} must be the name of an attribute of {kind.__name__}, or None, got "
                f"{given!r}."
            )
    if scale is None and shift is None:
        raise ConfigError(f"{kind.__name__} without scale and shift has nothing to adapt.")
    _REGISTERED[kind] = NormKind(scale, shift, channels)


def registered_kind(layer: nn.Module) -> NormKind | None:
    """Return the registered kind of a layer; None if it has none."""
    if not _REGISTERED:
        return None
    kinds = (_REGISTERED.get(base) for base in type(layer).__mro__)
    return next((kind for kind in kinds if kind is not None), None)


def norm_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield every normalization layer once, with its dotted name ("" for the model itself)."""
    for name, module in model.named_modules():
        if isinstance(module, NORM_TYPES) or registered_kind(module) is not None:
            yield name, module


def own_tensor(layer: nn.Module, name: str) -> Tensor | None:
    """Return a layer's own tensor by name, without `__getattr__`; None if there is none.

    It may be a parameter, a buffer or an attribute.
    """
    for namespace in (layer._parameters, layer._buffers, vars(layer)):
        # Not .get(): the dictionaries of a scripted module do not have it.
        if name in namespace and isinstance(value := namespace[name], Tensor):
            return value
    return None


def affine_attributes(layer: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the name and tensor of a layer's scale and shift, if it has them.

    Raises:
        UnsupportedModelError: the layer computes its parameters from others, or lacks an attribute
            that its registered kind names.
    """
    kind = registered_kind(layer)
    names = ("weight", "bias") if kind is None else (kind.scale, kind.shift)
    for attribute in names:
        if attribute is None:
            continue
        parametrized = isinstance(getattr(type(layer), attribute, None), property)
        value = own_tensor(layer, attribute)
        if value is None and not parametrized:
            if kind is not None:
                _check_named(layer, kind, attribute)
            continue
        # The older torch.nn.utils.weight_norm leaves a plain tensor that a hook overwrites; in a
        # replica of torch.nn.DataParallel every parameter is a plain tensor.
        overwritten = attribute in vars(layer) and not vars(layer).get("_is_replica", False)
        if parametrized or overwritten:
            raise UnsupportedModelError(
                f"{type(layer).__name__}.{attribute} is computed by a parametrization, so it "
                "cannot be adapted: remove it (torch.nn.utils.parametrize.remove_parametrizations, "
                "torch.nn.utils.remove_weight_norm)."
            )
        if value is not None:
            yield attribute, value


def _check_named(layer: nn.Module, kind: NormKind, attribute: str) -> None:
    """Check that a layer has an attribute that its kind names, if only as None."""
    if getattr(layer, attribute, layer) is None:  # the layer itself stands for no attribute
        return
    own = [*layer._parameters, *layer._buffers]
    raise UnsupportedModelError(
        f"dent.register_norm was told that {attribute!r} holds the "
        f"{'scale' if attribute == kind.scale else 'shift'} of {type(layer).__name__}, which has "
        f"no such parameter or buffer, only {', '.join(own) or 'none at all'}. Register it with "
        "the right names, and with None for what it lacks."
    )


def affine_layers(model: nn.Module) -> list[tuple[str, list[tuple[str, Tensor]]]]:
    """Return the dotted name, and the scale and shift, of each layer that has one of them."""
    layers = [(name, [*affine_attributes(layer)]) for name, layer in norm_layers(model)]
    return [(name, attributes) for name, attributes in layers if attributes]


def use_test_statistics(layer: nn.Module) -> None:
    """Make a layer normalize by the statistics of its current input, at every forward."""
    if isinstance(layer, _BatchNorm | _InstanceNorm):
        layer.track_running_stats = False
        layer._buffers.update(running_mean=None, running_var=None)


def normalizes_by_batch(model: nn.Module, config: DentConfig) -> bool:
    """Return whether a defense normalizes by the statistics of its batch, not running ones."""
    return config.statistics == "test" and any(
        isinstance(layer, _BatchNorm) for _, layer in norm_layers(model)
    )


class OutsideAffine:
    """Scale and shift of a layer of a registered kind, applied outside it, to its output.

    With this, a layer that does its own arithmetic can have one set per sample.

    Args:
        layer: a layer of a private copy; it gets a forward hook.
        kind: the layer's kind.
    """

    def __init__(self, layer: nn.Module, kind: NormKind) -> None:
        self._kind = kind
        self._values: dict[str, Affine] = {}
        layer.register_forward_hook(self._apply)

    def neutral(self, attribute: str, value: "Affine", like: Tensor) -> Tensor:
        """Store a scale or shift, and return ones or zeros for the layer."""
        self._values[attribute] = value
        fill = torch.ones_like if attribute == self._kind.scale else torch.zeros_like
        return fill(like)

    def _apply(self, module: nn.Module, args: object, output: Tensor) -> Tensor | None:
        if not self._values:
            return None
        scale, shift = (
            None if name is None else self._values.get(name)
            for name in (self._kind.scale, self._kind.shift)
        )
        last = self._kind.channels == "last"
        return _scale_and_shift(output, scale, shift, channels_last=last)


class Affine:
    """A layer's scale or shift, one row per sample or one row for all.

    Args:
        value: (N or 1, *shape), with the shape of the layer's own parameter.
        orders: the order of an input's rows by their number; an input with N rows needs none.
    """

    def __init__(self, value: Tensor, orders: Mapping[int, Order] | None = None) -> None:
        self.value = value
        self.orders = orders or {}

    def with_value(self, value: Tensor) -> "Affine":
        """Return the same for another value."""
        return Affine(value, self.orders)

    def rows_for(self, x: Tensor) -> Tensor:
        """Return the value with one row for each row of an input, or one row for all.

        Args:
            x: (N, ...), or (k * N, ...) with k rows of each sample.

        Raises:
            UnknownOrderError: the order of the rows of x is not known.
        """
        samples, rows = self.value.shape[0], x.shape[0]
        if samples in (1, rows):
            return self.value
        order = self.orders.get(rows)
        if order is None:
            raise UnknownOrderError(
                f"A normalization layer got an input of shape {tuple(x.shape)} for a batch of "
                f"{counted(samples, 'sample')}, so its first dimension is not the batch, and dent "
                "found no order in which each of its rows belongs to one sample. Sample-wise "
                "adaptation needs the batch there (batch_first=True in transformers, no "
                "torch.vmap); or adapt batch-wise."
            )
        each = rows // samples
        major = order == "sample-major"
        apart = self.value.unsqueeze(1 if major else 0)
        counts = (samples, each) if major else (each, samples)
        return apart.expand(*counts, *self.shape).flatten(0, 1)

    @property
    def dtype(self) -> torch.dtype:
        """Data type, for models that cast their activations to their parameters'."""
        return self.value.dtype

    @property
    def device(self) -> torch.device:
        """Device, for models that ask a parameter for it."""
        return self.value.device

    @property
    def shape(self) -> torch.Size:
        """Shape of the layer's own parameter, for models that normalize over it."""
        return self.value.shape[1:]

    def __getattr__(self, name: str) -> NoReturn:
        """Refuse any other attribute of a parameter that a layer may use, with advice."""
        if name.startswith("_"):  # Python and torch look for these, and can do without
            raise AttributeError(name)
        raise _own_arithmetic(f".{name}")

    def _refuse(self, *_: object) -> NoReturn:
        raise _own_arithmetic("arithmetic or an index")

    __getitem__ = __neg__ = __pow__ = _refuse
    __add__ = __radd__ = __sub__ = __rsub__ = _refuse
    __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _refuse

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: tuple[type, ...],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Tensor:
        """Run a normalization function with this kind of scale and shift."""
        if func not in _RUN:
            raise _own_arithmetic(f"{getattr(func, '__name__', func)}()")
        return _RUN[func](*args, **(kwargs or {}))


def _own_arithmetic(what: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"A normalization layer uses its scale or shift in {what}, which cannot take one per "
        "sample. Adapt batch-wise in the layer's own precision, or rewrite the layer with "
        "torch.nn.functional's normalization functions."
    )


def _batch_norm(
    input: Tensor,  # noqa: A002 - torch passes it by this name
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Affine | None = None,
    bias: Affine | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if training or running_mean is None or running_var is None:
        normalized = F.batch_norm(input, running_mean, running_var, None, None, True, momentum, eps)
        return _scale_and_shift(normalized, weight, bias, channels_last=False)
    return fixed_batch_norm(input, running_mean, running_var, weight, bias, eps)


def fixed_batch_norm(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Affine | None,
    bias: Affine | None,
    eps: float,
) -> Tensor:
    """Normalize by statistics that do not depend on `x`, with their gradient.

    Args:
        x: (N, C, ...).
        mean: (C,).
        variance: (C,).
        weight: the scale; None for ones.
        bias: the shift; None for zeros.
        eps: added to the variance.
    """
    # Fold the statistics into scale and shift, so that x is read only once. As in the kernels,
    # use at least float32: half precision would round the scale.
    precision = torch.promote_types(variance.dtype, torch.float32)
    inverse = (variance.to(precision) + eps).rsqrt()
    scale = inverse if weight is None else weight.value * inverse
    shift = -mean * scale if bias is None else bias.value - mean * scale
    if scale.dim() == 1:  # without a parameter: one row for all samples
        scale = scale.unsqueeze(0)
    if shift.dim() == 1:
        shift = shift.unsqueeze(0)
    given = weight or bias or Affine(scale)
    return _scale_and_shift(
        x, given.with_value(scale), given.with_value(shift), channels_last=False
    )


def _instance_norm(
    input: Tensor,  # noqa: A002
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Affine | None = None,
    bias: Affine | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    normalized = F.instance_norm(
        input, running_mean, running_var, None, None, use_input_stats, momentum, eps
    )
    return _scale_and_shift(normalized, weight, bias, channels_last=False)


def _group_norm(
    input: Tensor,  # noqa: A002
    num_groups: int,
    weight: Affine | None = None,
    bias: Affine | None = None,
    eps: float = 1e-5,
) -> Tensor:
    normalized = F.group_norm(input, num_groups, None, None, eps)
    return _scale_and_shift(normalized, weight, bias, channels_last=False)


def _layer_norm(
    input: Tensor,  # noqa: A002
    normalized_shape: list[int],
    weight: Affine | None = None,
    bias: Affine | None = None,
    eps: float = 1e-5,
) -> Tensor:
    normalized = F.layer_norm(input, normalized_shape, None, None, eps)
    return _scale_and_shift(normalized, weight, bias, channels_last=True)


def _rms_norm(
    input: Tensor,  # noqa: A002
    normalized_shape: list[int],
    weight: Affine | None = None,
    eps: float | None = None,
) -> Tensor:
    # Written out, because a fused kernel may have no second derivative.
    x = input.to(torch.promote_types(input.dtype, torch.float32))
    axes = tuple(range(-len(normalized_shape), 0))
    # Use the eps of x, as the kernels do: the eps of a half-precision input would be 1e-3.
    floor = torch.finfo(x.dtype).eps if eps is None else eps
    normalized = x * (x.square().mean(axes, keepdim=True) + floor).rsqrt()
    return _scale_and_shift(normalized, weight, None, channels_last=True).to(input.dtype)


_RUN: dict[Callable[..., Any], Callable[..., Tensor]] = {
    F.batch_norm: _batch_norm,
    F.instance_norm: _instance_norm,
    F.group_norm: _group_norm,
    F.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
}


def _scale_and_shift(
    x: Tensor, weight: Affine | None, bias: Affine | None, *, channels_last: bool
) -> Tensor:
    """Return x * weight + bias, computed in their highest precision and rounded to that of x."""
    scale = None if weight is None else _align(weight, x, channels_last=channels_last)
    shift = None if bias is None else _align(bias, x, channels_last=channels_last)
    if scale is None:
        return x if shift is None else (x + shift).to(x.dtype)
    if shift is None:
        return (x * scale).to(x.dtype)
    # Not addcmul: it rounds once, not twice, so a unit near the kink of a ReLU could fall on the
    # other side than in the published code.
    return (x * scale + shift).to(x.dtype)


def _align(affine: Affine, x: Tensor, *, channels_last: bool) -> Tensor:
    """View a scale or shift so that it broadcasts over x, with the channels last or second."""
    rows = affine.rows_for(x)
    if rows.dim() > x.dim() and rows.shape[1] == 1:  # a parameter with an axis for the batch
        rows = rows.squeeze(1)
    missing = [1] * (x.dim() - rows.dim())
    shape = [rows.shape[0], *missing, *rows.shape[1:]]
    if not channels_last:
        shape = [*rows.shape, *missing]
    return rows.reshape(shape)
