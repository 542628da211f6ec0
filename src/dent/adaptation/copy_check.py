"""Check that a private copy of a model gives the model's outputs."""

import copy
import threading
from collections import deque
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from types import FunctionType, ModuleType, NoneType
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from dent.adaptation.private_copy import kept_tensors, private_copy
from dent.adaptation.scripted import scripted_state
from dent.errors import StatefulModelWarning, UnsupportedModelError
from dent.support.plural import listed
from dent.support.warned import warn

_ULPS: Final = 1000
_LOOSEST: Final = 0.05
"""Largest distance of two outputs that count as equal: `_ULPS` units in the last place of the
largest value, but at most the share `_LOOSEST` of it."""
_SHOWN: Final = 3

_ATOMS: Final = (int, float, str, bytes, NoneType)
_NO_OBJECTS: Final = (Tensor, nn.Module, type, ModuleType, FunctionType)

_WHY_COPY_DIFFERS: Final = (
    "Dent works on a private copy and never writes to the model. Something in the forward of "
    "{name} leads back to the original: a global variable, a hook or function that an object "
    "outside of the model holds, or state kept there. Let forward use `self` and its arguments "
    "alone, so that copy.deepcopy(model) answers as the model does."
)


class _Unanswered(Exception):  # noqa: N818 - what the model raised is what matters
    """The model itself cannot take a batch."""


def check_copy(model: nn.Module, x: Tensor, restore: Callable[[], None]) -> bool:
    """Check that a copy gives the model's outputs, before and after another batch.

    Warn if the model's own outputs depend on earlier batches.

    Args:
        model: the model, not compiled, which is run, and then restored to its current state.
        x: (N, ...), finite.
        restore: sets the random generators back.

    Returns:
        Whether the model gave an output to compare: False if it fails on `x`.

    Raises:
        UnsupportedModelError: a copy fails, calls the model's own layers, or gives other outputs,
            or the model creates parameters when it runs.
    """
    before = {parameter_name for parameter_name, _ in model.named_parameters()}
    with torch.no_grad(), _restored_on_exit(model) as put_back:

        def ask(x: Tensor) -> Any:
            restore()
            return _ask(model, x)

        def repeats() -> bool:
            answers = []
            for _ in range(2):
                put_back()
                answers.append(ask(x))
            return equal_up_to_rounding(*answers)

        try:
            first = _compare(model, x, ask, restore, repeats)
            _refuse_new_parameters(model, before)
            ask(x.flip(-1) * 0.5)
            second = _compare(model, x, ask, restore, repeats)
            carries = not equal_up_to_rounding(first, second) and repeats()
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


def _refuse_new_parameters(model: nn.Module, before: Set[str]) -> None:
    new = [name for name, _ in model.named_parameters() if name not in before]
    if new:
        raise UnsupportedModelError(
            f"The first forward of {type(model).__name__} creates parameters "
            f"({listed(new, _SHOWN)}), so every private copy would have its own, drawn anew. Run "
            "one batch through the model before wrapping it."
        )


def _compare(
    model: nn.Module,
    x: Tensor,
    ask: Callable[[Tensor], Any],
    restore: Callable[[], None],
    repeats: Callable[[], bool],
) -> Any:
    """Compare the output of a new copy with the model's, and return the model's.

    Args:
        model: the model.
        x: (N, ...), finite.
        ask: runs the model on a batch.
        restore: sets the random generators back.
        repeats: whether the model gives the same output for `x` twice.

    Raises:
        UnsupportedModelError: the copy fails, calls the model's own layers, or gives another
            output.
        _Unanswered: the model itself cannot take `x`.
    """
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
            f"{type(failure).__name__}: {failure}. {_WHY_COPY_DIFFERS.format(name=name)}"
        ) from failure
    if called:
        raise UnsupportedModelError(
            f"A private copy of {name} calls layers of the model itself "
            f"({listed(dict.fromkeys(called), _SHOWN)}), so what is adapted would change "
            f"nothing. {_WHY_COPY_DIFFERS.format(name=name)}"
        )
    if not equal_up_to_rounding(actual, expected) and repeats():
        raise UnsupportedModelError(
            f"A private copy of {name} does not answer as the model does"
            f"{_apart(actual, expected, x)}. {_WHY_COPY_DIFFERS.format(name=name)}"
        )
    return expected


def _apart(actual: Any, expected: Any, x: Tensor) -> str:
    """Return how far two outputs are apart, if they are tensors of one shape; otherwise nothing."""
    tensors = isinstance(actual, Tensor) and isinstance(expected, Tensor)
    if not tensors or actual.shape != expected.shape:
        return ""
    by = f"{distance(actual, expected):.2g}"
    return f": on a batch of shape {tuple(x.shape)} they differ by {by}"


def _ask(model: nn.Module, x: Tensor) -> Any:
    try:
        return model(x.clone())
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise _Unanswered from error


def equal_up_to_rounding(a: Any, b: Any) -> bool:
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


def distance(a: Tensor, b: Tensor) -> float:
    """Return the largest difference of two outputs of the same shape."""
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
def _restored_on_exit(model: nn.Module) -> Iterator[Callable[[], None]]:
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
    tensors = [(tensor, tensor.clone()) for tensor in kept_tensors(model.modules())]
    restore_scripted = scripted_state(model)

    def put_back() -> None:
        restore_scripted()
        for container, content in (*before, *held):
            _refill(container, content)
        for tensor, value in tensors:
            with torch.inference_mode(tensor.is_inference()), torch.no_grad():
                if not torch.equal(tensor, value):
                    tensor.copy_(value)

    try:
        if any(module.training for module in modules):
            _put_into_eval_mode(model)
        yield put_back
    finally:
        put_back()


def _put_into_eval_mode(model: nn.Module) -> None:
    try:
        model.eval()
    except NotImplementedError:  # a part from torch.export refuses any mode, and has none
        for module in model.modules():
            module.training = False


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
