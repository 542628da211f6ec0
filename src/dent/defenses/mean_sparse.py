"""MeanSparse (Amini et al. 2024): replace activations near their channel's mean by that mean."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dent.adaptation.adaptation import Adaptation, Status
from dent.adaptation.private_copy import private_copy
from dent.adaptation.recomputation import recomputation_refused
from dent.defenses.base import STATIC, ReferenceDefense, check_adaptation, finite_rows
from dent.defenses.dent import Dent
from dent.errors import ConfigError, InputError, UnsupportedModelError
from dent.support.checks import read_number
from dent.support.devices import device_of, wide
from dent.support.plural import counted

_NAMES = (
    "relu",
    "relu6",
    "hardtanh",  # what nn.ReLU6 calls
    "threshold",
    "leaky_relu",
    "prelu",
    "rrelu",
    "elu",
    "celu",
    "selu",
    "silu",
    "hardswish",
    "mish",
    "gelu",
    "softplus",
    "softsign",
    "tanh",
)


def _functions(*names: str) -> frozenset[Callable[..., Any]]:
    """Return the functions and methods with these names, and those that work in place."""
    spelled = [each for name in names for each in (name, f"{name}_")]
    owners = (F, torch, Tensor)
    return frozenset(
        getattr(owner, each) for owner in owners for each in spelled if hasattr(owner, each)
    )


_ACTIVATIONS = _functions(*_NAMES)
"""The activation functions whose inputs change, called by a module or in the model's forward."""
_GATES = _functions("sigmoid", "hardsigmoid")
"""Functions that scale another tensor: no activation functions, unless they scale their input."""
_PRODUCTS = _functions("mul", "multiply")


@dataclass(frozen=True, eq=False)
class Sparsity:
    """The adaptation of `MeanSparse`, which selects only how to compute the gradient.

    Attributes:
        status: (N,) int64, values of `dent.Status`.
        exact: True for the exact gradient, False for the straight-through gradient.
    """

    status: Tensor
    exact: bool


class MeanSparse(ReferenceDefense):
    """A defense that sets inputs of activation functions to their channel's mean if they are near.

        a ← μ_c  if |a − μ_c| ≤ α σ_c,   else a

    before every activation function of PyTorch: ReLU and its variants (such as ReLU6, leaky ReLU,
    PReLU and ELU), GELU, SiLU, Hardswish, Mish, softplus, softsign and tanh. Sigmoid and
    Hardsigmoid do not count, because they are gates, as in squeeze-and-excitation. μ_c and σ_c are
    the mean and standard deviation of channel c over training images and positions. Nothing adapts
    to the batch: the defense is static, and removes small changes that an attacker makes.

    The true gradient of a replaced input is 0, which hides the slope from attacks. The paper
    reports gains of about a point on large models under AutoAttack. RobustBench's evaluation with a
    straight-through gradient found less robustness than the models have without MeanSparse. So the
    gradient is straight-through here, too (BPDA); `adapt(x, differentiable=True)` selects the exact
    gradient. MeanSparse is a test with a known answer: a suite that reports a gain for it is not
    strong enough.

    Source: Amini, Teymoorianfard, Ma and Houmansadr, "MeanSparse: Post-Training Robustness
    Enhancement Through Mean-Centered Feature Sparsification", and the authors' code, whose CIFAR-10
    command has the same α.

    Args:
        model: the classifier. Its forward calls the same activation functions in the same order
            for every batch. A function that it computes itself, such as `x.clamp(min=0)`, is not
            recognized as an activation function.
        alpha: the threshold, in standard deviations.
        images: training images (N, ...), or an iterable of batches of them, to compute the mean and
            standard deviation from. None uses BatchNorm's parameters: on training images, the
            output of such a layer has mean β and standard deviation |γ|. Activation functions with
            another input are then left unchanged.

    Raises:
        ConfigError: `alpha` is out of range, or `images` are no tensors.
        UnsupportedModelError: the model is not supported, it computes SiLU as `x * sigmoid(x)` or
            Hardswish as `x * hardsigmoid(x)`, or there is nothing to sparsify. Without `images`,
            only a prediction raises the last two.
    """

    name: ClassVar[str] = "mean-sparse"
    steps: ClassVar[int] = 0
    batch_dependent = False

    def __init__(
        self,
        model: nn.Module,
        *,
        alpha: float = 0.2,
        images: Tensor | Iterable[Tensor] | None = None,
    ) -> None:
        threshold = read_number("alpha", alpha, 0.0)
        if not isinstance(model, nn.Module):
            raise UnsupportedModelError(
                f"MeanSparse expected a torch.nn.Module, got {type(model).__name__}."
            )
        given = None if images is None else _measure(model, images)
        super().__init__(_Sparse(model, threshold, given, exact=False))
        self.alpha = threshold
        self._from_images = given is not None
        self.exactly = Dent(_Sparse(model, threshold, given, exact=True), STATIC)

    @property
    def settings(self) -> dict[str, Any]:
        """The threshold, and the source of the statistics, whose values are in buffers."""
        return {
            "alpha": self.alpha,
            "statistics": "images" if self._from_images else "batch-norm",
        }

    def unwrap(self) -> nn.Module:
        """Return the model, unchanged."""
        sparse: Any = self.classifier.unwrap()
        model: nn.Module = sparse.model
        return model

    def adapt(self, x: Tensor, *, differentiable: bool = False) -> Sparsity:
        """Return which gradient `predict` will have; see `ReferenceDefense.adapt`."""
        finite = finite_rows(x, self.name)
        status = torch.where(finite, Status.ADAPTED, Status.INPUT_NON_FINITE)
        return Sparsity(status, differentiable)

    def predict(self, x: Tensor, adaptation: Sparsity) -> Tensor:
        """Return logits (N, classes) of the sparsified model.

        The gradient to `x` passes straight through the sparsification, unless the adaptation asks
        for the exact gradient.

        Raises:
            InputError: the adaptation is for another number of samples, or `x` is not valid for the
                model.
            UnsupportedModelError: the model uses activation checkpointing, and `x` needs a
                gradient.
        """
        check_adaptation(adaptation, Sparsity, self.name)
        if len(adaptation.status) != len(x):
            raise InputError(
                f"What was made of {counted(len(adaptation.status), 'sample')} cannot predict "
                f"{len(x)}: adapt to the very batch you predict."
            )
        nothing = Adaptation({}, None, None, x.new_zeros(0, len(x)), adaptation.status, False)
        return (self.exactly if adaptation.exact else self.classifier).predict(x, nothing)


class _Sparse(nn.Module):
    """A model with sparsified activations."""

    def __init__(
        self,
        model: nn.Module,
        alpha: float,
        statistics: list[tuple[Tensor, Tensor]] | None,
        *,
        exact: bool,
    ) -> None:
        super().__init__()
        self.model, self.alpha, self.exact = model, alpha, exact
        self.places = None if statistics is None else len(statistics)
        for place, (mean, deviation) in enumerate(statistics or []):
            self.register_buffer(f"mean_{place}", mean)
            self.register_buffer(f"deviation_{place}", deviation)
        self.training = model.training

    def forward(self, x: Tensor) -> Tensor:
        mode = _Sparsifying(self)
        with _versions(), recomputation_refused("MeanSparse", x), mode:
            logits: Tensor = self.model(_with_version(x))
        if not mode.sparsified:
            raise UnsupportedModelError(
                f"MeanSparse found nothing to sparsify in {type(self.model).__name__}: no "
                "activation function takes what a BatchNorm layer gives. Give it images to take "
                "the mean and deviation from: MeanSparse(model, images=...)."
            )
        return logits


@contextmanager
def _versions() -> Iterator[None]:
    """Leave the caller's inference mode, in which tensors do not tell of writes in place."""
    gradients = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.set_grad_enabled(gradients):
        yield


def _with_version(x: Tensor) -> Tensor:
    return x.clone() if x.is_inference() else x


class _BatchNormOutput(NamedTuple):
    values: Tensor
    version: int
    scale: Tensor | None
    shift: Tensor | None


class _Activations(TorchFunctionMode):
    """A mode in which the input of every activation function first passes through `look`."""

    def __init__(self) -> None:
        super().__init__()
        self.place = 0
        self._normalized: _BatchNormOutput | None = None
        self._linear: Tensor | None = None
        self._gate: tuple[Tensor, Tensor] | None = None

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: tuple[type, ...],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        del types
        kwargs = kwargs or {}
        if func in _ACTIVATIONS:
            values, *others = args or (kwargs.pop("input"),)
            given = self.look(values)
            result = func(given, *others, **kwargs)
            self.place += 1
            in_place = result is given and given is not values
            return values.copy_(result) if in_place else result
        if func in _PRODUCTS:
            self._check_product(*args, *kwargs.values())
        result = func(*args, **kwargs)
        if func in _GATES:
            values = args[0] if args else kwargs["input"]
            self._gate = None if result is values else (values, result)
        if func is F.linear:
            self._linear = result
        if func is F.batch_norm:
            scale = args[3] if len(args) > 3 else kwargs.get("weight")
            shift = args[4] if len(args) > 4 else kwargs.get("bias")
            self._normalized = _BatchNormOutput(result, result._version, scale, shift)
        return result

    def _check_product(self, *factors: object) -> None:
        """Refuse a gate that scales its own input: x * sigmoid(x) is an activation function."""
        if self._gate is None:
            return
        values, gate = self._gate
        if any(values is each for each in factors) and any(gate is each for each in factors):
            raise UnsupportedModelError(
                f"The model computes SiLU or Hardswish itself: its forward multiplies x, of shape "
                f"{tuple(values.shape)}, by sigmoid(x) or hardsigmoid(x). MeanSparse changes only "
                "the inputs of PyTorch's own activation functions: replace that layer with "
                "nn.SiLU() or nn.Hardswish()."
            )

    def look(self, values: Tensor) -> Tensor:
        """Return the input that the activation function receives instead of `values`."""
        raise NotImplementedError

    def axis(self, values: Tensor) -> int:
        """Return the channel axis: the last one for tokens and after linear layers, otherwise 1."""
        if self._is_normalized(values):
            return 1
        return values.dim() - 1 if values.dim() == 3 or values is self._linear else 1

    def remembered(self, values: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return mean and deviation, (C,) each, if the last BatchNorm layer returned `values`."""
        if self._normalized is None or not self._is_normalized(values):
            return None
        scale, shift = self._normalized.scale, self._normalized.shift
        ones = values.new_ones(values.shape[1])
        return (0 * ones if shift is None else shift, ones if scale is None else scale.abs())

    def _is_normalized(self, values: Tensor) -> bool:
        made = self._normalized
        # The version tells that nothing was added in place, such as a shortcut.
        return made is not None and values is made.values and values._version == made.version


class _Sparsifying(_Activations):
    def __init__(self, owner: _Sparse) -> None:
        super().__init__()
        self._owner = owner
        self.sparsified = False

    def look(self, values: Tensor) -> Tensor:
        owner = self._owner
        found = self._measured(values) if owner.places is not None else self.remembered(values)
        if found is None:
            return values
        self.sparsified = True
        mean, deviation = (_along(each, self.axis(values), values) for each in found)
        near = (values - mean).abs() <= owner.alpha * deviation
        sparse = torch.where(near, mean, values)
        return sparse if owner.exact else values + (sparse - values).detach()

    def _measured(self, values: Tensor) -> tuple[Tensor, Tensor]:
        owner, place, channels = self._owner, self.place, values.shape[self.axis(values)]
        mean = owner._buffers.get(f"mean_{place}")
        deviation = owner._buffers.get(f"deviation_{place}")
        if mean is None or deviation is None or len(mean) != channels:
            raise UnsupportedModelError(
                f"{type(owner.model).__name__} calls other activation functions than on the images "
                f"that mean and deviation are from: number {place + 1} takes {channels} channels."
            )
        return mean, deviation


class _Measuring(_Activations):
    """A mode that sums the inputs of each activation function, and their squares."""

    def __init__(self, sums: dict[int, Tensor]) -> None:
        super().__init__()
        self._sums = sums

    def look(self, values: Tensor) -> Tensor:
        flat = wide(values.detach().movedim(self.axis(values), 0).flatten(1))
        count = flat.new_full((len(flat),), flat.shape[1])
        added = torch.stack([count, flat.sum(1), flat.square().sum(1)])
        before = self._sums.get(self.place)
        if before is not None and before.shape != added.shape:
            raise UnsupportedModelError(
                f"Activation function number {self.place + 1} takes {len(flat)} channels of one "
                f"batch and {before.shape[1]} of another, so they have no common mean."
            )
        self._sums[self.place] = added if before is None else before + added
        return values


def _measure(model: nn.Module, images: Tensor | Iterable[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Return mean and standard deviation, (C,) each, of the input of each activation function."""
    try:
        batches = iter(images.split(_ROWS) if isinstance(images, Tensor) else images)
    except TypeError:
        raise _no_images(images) from None
    copy, sums = private_copy(model), dict[int, Tensor]()
    dtype = next((each.dtype for each in model.parameters()), torch.float32)
    for batch in batches:
        if not isinstance(batch, Tensor):
            raise _no_images(batch)
        with _versions(), torch.no_grad(), _Measuring(sums):
            copy(_with_version(batch))
    if not sums:
        raise UnsupportedModelError(
            f"MeanSparse found nothing to sparsify in {type(model).__name__}: there are no images, "
            "or its forward calls no activation function such as relu."
        )
    device, statistics = device_of(model), []
    for _, (count, total, squares) in sorted(sums.items()):
        mean = total / count
        deviation = (squares / count - mean.square()).clamp(min=0).sqrt()
        statistics.append((mean.to(dtype).to(device), deviation.to(dtype).to(device)))
    return statistics


def _no_images(given: object) -> ConfigError:
    return ConfigError(
        "images must be a tensor of images (N, ...) or an iterable of such batches, got "
        f"{type(given).__name__}: leave out the labels of a loader."
    )


_ROWS = 256
"""Images per batch."""


def _along(channels: Tensor, axis: int, like: Tensor) -> Tensor:
    """Return values per channel, reshaped to broadcast over `like` along an axis."""
    return channels.detach().view([-1 if each == axis else 1 for each in range(like.dim())])
