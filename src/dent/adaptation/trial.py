"""Checks that run once, on the first batch of a defense, before its predictions count.

A private copy must give the outputs of its model, gradients must reach what is adapted, and the
outputs must be logits. This cannot be checked without a batch, and unchecked it would fail
silently.
"""

import copy
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from types import FunctionType, ModuleType, NoneType
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from dent.adaptation.adapted_model import AdaptedModel, eager, norm_parameters
from dent.adaptation.isolation import isolated
from dent.adaptation.lookalikes import FunctionalNorms
from dent.adaptation.memory_format import FEW_ROWS
from dent.adaptation.norm import norm_layers, normalizes_by_batch, registered_kind
from dent.adaptation.objectives import loss
from dent.adaptation.private_copy import kept_tensors, private_copy
from dent.adaptation.random_state import same_random_numbers
from dent.adaptation.untraced import untraced
from dent.adaptation.views import of_views
from dent.config import DentConfig
from dent.errors import (
    NoAdaptationWarning,
    NotLogitsWarning,
    PixelRangeWarning,
    SmallBatchWarning,
    StatefulModelWarning,
    UnadaptedLayersWarning,
    UnsupportedModelError,
)
from dent.support.plural import counted
from dent.support.warned import are_own_batches, warn

_ULPS: Final = 1000
_LOOSEST: Final = 0.05
"""Largest distance of two outputs that count as equal: `_ULPS` units in the last place of the
largest value, but at most the share `_LOOSEST` of it."""
_LOCK: Final = threading.RLock()
"""Held while the model itself runs, so that only one thread at a time runs it."""

_BYTES: Final = 16
_BEYOND: Final = 160
"""Images count as pixels from 0 to 255 if no value is below 0 and one exceeds `_BYTES`, or if the
magnitude of one exceeds `_BEYOND`. Usual normalizations give no such values: by mean and standard
deviation they stay within about 3, and bytes minus their mean within 152 (Caffe)."""
_CHANNELS: Final = (1, 3, 4)


@dataclass
class Trial:
    """Record of the checks that a defense has passed and of the warnings that it gave.

    Copies of the defense and its variants with other steps share it.
    """

    copied: bool = False
    stepped: bool = False
    warned_of_pixels: bool = False
    warned_of_one: bool = False

    def __deepcopy__(self, memo: object) -> "Trial":
        del memo
        return self

    def warn_of_one_sample(self, model: nn.Module, config: DentConfig, x: Tensor) -> None:
        """Warn once of a batch of one sample that is not adapted, or whose prediction is noise."""
        if self.warned_of_one or len(x) != 1 or are_own_batches():
            return
        if normalizes_by_batch(eager(model), config):
            self.warned_of_one = True
            warn(
                "A batch of one sample is normalized by its own statistics, which makes its "
                "prediction noise. Submit 32 samples or more at once, or configure "
                "statistics='train'.",
                SmallBatchWarning,
            )
        elif config.steps > 0 and config.objective == "information-maximization":
            self.warned_of_one = True
            warn(
                "A batch of one sample is not adapted, because information maximization (dent+) is "
                "constant for a single sample. Submit more samples at once.",
                NoAdaptationWarning,
            )

    @untraced
    def run(
        self, model: nn.Module, config: DentConfig, x: Tensor, pixels: tuple[float, float]
    ) -> None:
        """Check a defense on its first batch; return at once if that was done.

        Args:
            model: the model, which is run, and then restored to its current state.
            config: the defense; without steps, only the copy is checked.
            x: (N, ...), finite.
            pixels: the smallest and the largest value of `x`.

        Raises:
            UnsupportedModelError: a private copy does not give the model's outputs, the outputs are
                not logits, a gradient is cut or fails, or a registered layer is declared wrongly.
        """
        if not self.warned_of_pixels:
            self.warned_of_pixels = _warn_of_pixels(x, *pixels)
        if not len(x) or (self.copied and (self.stepped or not config.steps)):
            return
        with _LOCK, isolated(x, differentiable=False):
            model, x = eager(model), x.clone() if x.is_inference() else x.detach()
            if not self.copied:
                self.copied = _first(_check_copy, model, x)
            if config.steps and not self.stepped:
                self.stepped = _first(lambda *given: _check_steps(config, *given), model, x)


def seem_probabilities(logits: Tensor) -> bool:
    """Return whether every row is a probability distribution."""
    rows = logits.detach().float()
    ones = torch.ones(len(rows), device=rows.device)
    return bool((rows >= 0).all()) and torch.allclose(rows.sum(1), ones, atol=1e-2)


def _warn_of_pixels(x: Tensor, low: float, high: float) -> bool:
    if x.dim() != 4 or x.shape[1] not in _CHANNELS or not x.numel():
        return False
    if not ((low >= 0 and high > _BYTES) or max(-low, high) > _BEYOND):
        return False
    warn(
        f"Images have values from {low:g} to {high:g}, as pixels from 0 to 255 have. Most models "
        "take [0, 1] or normalized pixels: divide by 255. If the model does take such values, "
        "call warnings.filterwarnings('ignore', category=dent.PixelRangeWarning).",
        PixelRangeWarning,
    )
    return True


def _first(
    check: Callable[[nn.Module, Tensor, Callable[[], None]], bool], model: nn.Module, x: Tensor
) -> bool:
    """Run a check on a few samples, or on all if the model cannot take so few.

    Returns:
        Whether the model gave an output to check. If not, the caller's own forward pass reports
        the error.
    """
    for rows in (x[:FEW_ROWS], x):
        with same_random_numbers(model, x.device) as restore:
            if check(model, rows, restore):
                return True
    return False


class _Unanswered(Exception):  # noqa: N818 - what the model raised is what matters
    """The model itself cannot take a batch."""


def _check_copy(model: nn.Module, x: Tensor, restore: Callable[[], None]) -> bool:
    """Check that a copy gives the model's outputs, before and after another batch.

    Warn if the model's own outputs depend on earlier batches. Return False if it fails on `x`.
    """
    with torch.no_grad(), _as_it_was(model) as put_back:

        def ask(x: Tensor) -> Any:
            restore()
            return _ask(model, x)

        def repeats() -> bool:
            answers = []
            for _ in range(2):
                put_back()
                answers.append(ask(x))
            return _close(*answers)

        try:
            first = _compare(model, x, ask, restore, repeats)
            ask(x.flip(-1) * 0.5)
            second = _compare(model, x, ask, restore, repeats)
            carries = not _close(first, second) and repeats()
        except _Unanswered:
            return False
    if carries:
        warn(
            f"{type(model).__name__} gives other logits for the same batch after another batch, "
            "so it keeps state between calls. A Dent never writes to its model, so every call "
            "starts from the model's current state and does not change it.",
            StatefulModelWarning,
        )
    return True


def _compare(
    model: nn.Module,
    x: Tensor,
    ask: Callable[[Tensor], Any],
    restore: Callable[[], None],
    repeats: Callable[[], bool],
) -> Any:
    restore()
    copied = private_copy(model)
    failure, actual = None, None
    with _calls_to(model, copied) as called:
        try:
            actual = copied(x.clone())
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            failure = error
    expected = ask(x)
    name = type(model).__name__
    if failure is not None:
        raise UnsupportedModelError(
            f"A private copy of {name} cannot take a batch that the model takes: "
            f"{type(failure).__name__}: {failure}. {_REACHES.format(name=name)}"
        ) from failure
    if called:
        raise UnsupportedModelError(
            f"A private copy of {name} calls layers of the model itself ({_listed(called)}), so "
            f"what is adapted would change nothing. {_REACHES.format(name=name)}"
        )
    if not _close(actual, expected) and repeats():
        apart = ""
        if (
            isinstance(actual, Tensor)
            and isinstance(expected, Tensor)
            and actual.shape == expected.shape
        ):
            distance = _apart(actual, expected)
            apart = f": on a batch of shape {tuple(x.shape)} they differ by {distance:.2g}"
        raise UnsupportedModelError(
            f"A private copy of {name} does not answer as the model does{apart}. "
            f"{_REACHES.format(name=name)}"
        )
    return expected


_REACHES: Final = (
    "Dent works on a private copy and never writes to the model. Something in the forward of "
    "{name} leads back to the original: a global variable, a hook or function that an object "
    "outside of the model holds, or state kept there. Let forward use `self` and its arguments "
    "alone, so that copy.deepcopy(model) answers as the model does."
)


def _ask(model: nn.Module, x: Tensor) -> Any:
    try:
        return model(x.clone())
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise _Unanswered from error


def _close(a: Any, b: Any) -> bool:
    """Return whether two outputs are equal up to rounding; so are any two that are no tensors."""
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return isinstance(a, Tensor) == isinstance(b, Tensor)
    if a.shape != b.shape:
        return False
    if not a.is_floating_point() or not a.numel():
        return True
    scale = float(b.nan_to_num(0, 0, 0).abs().max())
    bound = min(_ULPS * torch.finfo(a.dtype).eps, _LOOSEST) * scale
    return torch.allclose(a, b, rtol=0, atol=bound, equal_nan=True)


def _apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


@contextmanager
def _calls_to(model: nn.Module, copied: nn.Module) -> Iterator[list[str]]:
    """Collect the dotted names of the model's own modules that this thread calls."""
    called: list[str] = []
    shared = {id(module) for module in copied.modules()}
    names = {
        id(submodule): name
        for name, submodule in model.named_modules()
        if id(submodule) not in shared
    }
    if any(type(submodule).__name__ == "OptimizedModule" for submodule in model.modules()):
        yield called  # torch.compile warns about global hooks
        return
    thread = threading.get_ident()

    def note(module: nn.Module, args: object) -> None:
        if id(module) in names and threading.get_ident() == thread:
            called.append(names[id(module)] or type(module).__name__)

    handle = register_module_forward_pre_hook(note)
    try:
        yield called
    finally:
        handle.remove()


@contextmanager
def _as_it_was(model: nn.Module) -> Iterator[Callable[[], None]]:
    """Put the model in eval mode, and restore its state on exit.

    Attributes, the contents of containers, and tensors are restored, but not parameters that a
    forward writes to in place. The yielded function restores them earlier.
    """
    modules = list(model.modules())
    before = [(vars(module), dict(vars(module))) for module in modules]
    held = [
        (container, copy.copy(container))
        for _, attributes in before
        for value in attributes.values()
        for container in _containers(value, set())
    ]
    tensors = [(tensor, tensor.clone()) for tensor in kept_tensors(model)]

    def put_back() -> None:
        for container, content in (*before, *held):
            _refill(container, content)
        for tensor, value in tensors:
            with torch.inference_mode(tensor.is_inference()), torch.no_grad():
                if not torch.equal(tensor, value):
                    tensor.copy_(value)

    try:
        if any(module.training for module in modules):
            model.eval()
        yield put_back
    finally:
        put_back()


def _containers(value: Any, visited: set[int], in_object: bool = False) -> Iterator[Any]:
    """Yield a container, the containers in it, and the attributes of plain objects in it."""
    if id(value) in visited:
        return
    visited.add(id(value))
    inner: Any = ()
    if isinstance(value, dict | list | set | deque):
        yield value
        inner = list(value.values()) if isinstance(value, dict) else list(value)
    elif isinstance(value, tuple):
        inner = value
    elif not in_object and not isinstance(value, _NO_OBJECTS) and hasattr(value, "__dict__"):
        yield vars(value)
        inner, in_object = list(vars(value).values()), True
    for item in inner:
        if not isinstance(item, _ATOMS):
            yield from _containers(item, visited, in_object)


_ATOMS: Final = (int, float, str, bytes, NoneType)
_NO_OBJECTS: Final = (Tensor, nn.Module, type, ModuleType, FunctionType)


def _refill(container: Any, content: Any) -> None:
    """Restore the content of a container if it has changed."""
    if len(container) == len(content) and all(
        a is b for a, b in zip(_flat(container), _flat(content), strict=True)
    ):
        return
    if isinstance(container, dict):  # never empty in between: other threads may read it
        for name in container.keys() - content.keys():
            del container[name]
        container.update(content)
        return
    container.clear()
    if isinstance(container, set):
        container.update(content)
    else:
        container.extend(content)


def _flat(container: Any) -> list[Any]:
    if isinstance(container, dict):
        return [*container.keys(), *container.values()]
    return list(container)


def _check_steps(
    config: DentConfig, model: nn.Module, x: Tensor, restore: Callable[[], None]
) -> bool:
    """Check that the outputs are logits and that gradients reach what is adapted.

    Return False if the model fails on `x`.
    """
    adapted = AdaptedModel(
        model, replace(config, smoothing=None) if config.adapt_affine else config
    )
    trained = norm_parameters(eager(model), config.last_layers) if config.adapt_affine else {}
    leaves = {name: _leaf(value, x, config) for name, value in trained.items()}
    restore()
    try:
        with adapted.noting_functions() as functions:
            logits = views = adapted(x, leaves)
        if config.views is not None:
            restore()
            views = of_views(partial(adapted, parameters=leaves), x, config.views)
    except UnsupportedModelError:
        raise
    except ValueError:  # an InputError: the full batch raises it
        return False
    _check_functions(model, config, functions)
    _warn_of_outputs(model, logits)
    if config.statistics == "train":
        restore()
        _check_registered(model, x, logits.detach())
    objective = loss(views, config.objective, config.reduction)
    if not leaves or not objective.requires_grad:  # the first step reports this
        return True
    gradients = dict(zip(leaves, _gradients(model, objective, [*leaves.values()]), strict=True))

    def answer(values: Mapping[str, Tensor]) -> Tensor:
        restore()
        with torch.no_grad():
            return adapted(x, values)

    cut = {name: leaves[name] for name, gradient in gradients.items() if gradient is None}
    if cut and not _close(answer(leaves), answer(leaves | _elsewhere(cut))):
        unmoved = answer(leaves)
        cut = {
            name: value
            for name, value in cut.items()
            if not _close(unmoved, answer(leaves | _elsewhere({name: value})))
        }
        _refuse_cut(model, list(cut), len(leaves))
    reached = [gradient for gradient in gradients.values() if gradient is not None]
    alone = config.objective == "information-maximization" and len(x) == 1
    if not alone and not any(bool(gradient.any()) for gradient in reached):
        _warn_of_no_gradient(model, logits.detach())
    return True


def _check_functions(model: nn.Module, config: DentConfig, functions: FunctionalNorms) -> None:
    """Warn about normalizations outside of layers; refuse statistics that could not be replaced."""
    name = type(model).__name__
    if functions.running is not None and config.statistics != "train":
        raise UnsupportedModelError(
            f"{name} calls batch_norm with running statistics of its own, of shape "
            f"{functions.running}, outside of a normalization layer, so "
            f"statistics={config.statistics!r} would not replace them. Call a torch.nn.BatchNorm "
            "layer there, or configure statistics='train'."
        )
    if functions.called and config.adapt_affine:
        warn(
            f"The forward of {name} calls {_listed(functions.called)} with tensors of its own, "
            "outside of a normalization layer, so they are not adapted. Call a torch.nn layer "
            "there, or ignore dent.UnadaptedLayersWarning.",
            UnadaptedLayersWarning,
        )


def _check_registered(model: nn.Module, x: Tensor, logits: Tensor) -> None:
    """Check that layers of registered kinds compute what their registrations declare."""
    kinds = {type(layer) for _, layer in norm_layers(model) if registered_kind(layer) is not None}
    if not kinds:
        return
    with torch.no_grad():
        want = AdaptedModel(model, _STATIC)(x, {})
    bound = _REGISTERED_APART * float(want.nan_to_num(0, 0, 0).abs().max())
    if not torch.allclose(logits, want, rtol=0, atol=bound, equal_nan=True):
        listed = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise UnsupportedModelError(
            f"With the trained scales and shifts, {type(model).__name__} answers otherwise than "
            f"without a defense, by {_apart(logits, want):.2g}: a registered kind ({listed}) does "
            "not compute normalized * scale + shift along the axis that dent.register_norm was "
            "told. Correct its channels, scale and shift, or adapt batch-wise."
        )


_STATIC: Final = DentConfig(steps=0)
_REGISTERED_APART: Final = 0.02


def _leaf(value: Tensor, x: Tensor, config: DentConfig) -> Tensor:
    leaf = value.detach().to(torch.promote_types(value.dtype, torch.float32))
    leaf = leaf.expand(len(x), *leaf.shape) if config.granularity == "sample" else leaf
    return leaf.clone().requires_grad_()


def _elsewhere(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach() * 1.5 + 0.5 for name, value in values.items()}


def _gradients(model: nn.Module, objective: Tensor, inputs: list[Tensor]) -> tuple[Any, ...]:
    try:
        return torch.autograd.grad(objective, inputs, allow_unused=True)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        advice = _CHECKPOINTING if "checkpoint" in str(error) else "Every step takes a gradient."
        raise UnsupportedModelError(
            f"The backward of {type(model).__name__} fails: {error} {advice}"
        ) from error


_CHECKPOINTING: Final = (
    "Switch activation checkpointing off (set_grad_checkpointing(False) in timm, "
    "gradient_checkpointing_disable() in transformers), or use torch.utils.checkpoint with "
    "use_reentrant=False."
)


def _refuse_cut(model: nn.Module, names: list[str], total: int) -> None:
    raise UnsupportedModelError(
        f"No gradient reaches {len(names)} of {total} adapted scales and shifts of "
        f"{type(model).__name__} ({_listed(names)}), although its logits depend on them, so they "
        "would never change. Something cuts the graph: reentrant checkpointing, torch.no_grad(), "
        f"detach() or NumPy. {_CHECKPOINTING} If the cut is intended, adapt only the layers after "
        "it (last_layers)."
    )


def _warn_of_outputs(model: nn.Module, logits: Tensor) -> None:
    name = type(model).__name__
    rows = logits.detach().float()
    if seem_probabilities(rows):
        what = (
            "rows that are not negative and sum to 1: probabilities, not logits. Take the softmax"
        )
    elif type(logits.grad_fn).__name__ == "SigmoidBackward0":
        what = (
            "what a sigmoid gives: a probability for each class alone, no logits. Take the sigmoid"
        )
    else:
        return
    warn(
        f"{name} returns {what} out of the model: the entropy of a softmax over them means "
        "nothing, and adaptation hardly moves.",
        NotLogitsWarning,
    )


def _warn_of_no_gradient(model: nn.Module, logits: Tensor) -> None:
    warn(
        f"The first step of the defense of {type(model).__name__} changes nothing: the gradient "
        "of its objective is exactly 0 in every scale and shift (tried on "
        f"{counted(len(logits), 'sample')}). "
        f"Its logits reach from {float(logits.min()):g} to {float(logits.max()):g}. If they are "
        "far apart, the softmax is saturated: check the units of the inputs. If they are all "
        "alike, the head is not trained.",
        NoAdaptationWarning,
    )


def _listed(names: list[str]) -> str:
    names = list(dict.fromkeys(names))
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
