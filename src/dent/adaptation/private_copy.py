"""Private copies of a model, which share its weights as constants and own everything else.

A defense copies its model at every call, so this takes a fraction of the time of copy.deepcopy,
with the same result. In addition, functions and hooks that refer to parts of the model refer to the
copy's parts. All other hooks are shared.
"""

import copy
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from torch import Tensor, nn

from dent.adaptation.random_state import copied, kept_generators
from dent.adaptation.rebinding import FOLLOWED, Rebinding
from dent.adaptation.untraced import untraced
from dent.errors import UnsupportedModelError
from dent.support.deep_copy import ATOMS, HOOKS, copy_modules, is_plain

_NO_TENSORS: Final = frozenset({"_parameters", "_modules", *HOOKS})
_NO_CALLABLES: Final = frozenset({"_parameters", "_modules", "_buffers"})
_MAY_LEAD_BACK: Final = (*FOLLOWED, list, tuple, dict)


@untraced
def private_copy(model: nn.Module, *, shares_generators: bool = False) -> nn.Module:
    """Return a copy of a model in eval mode that shares its weights (detached) and hooks.

    Args:
        model: any module.
        shares_generators: draw from the random generators that the model keeps as attributes, so
            that they advance as in a call of the model. Otherwise the copy draws from copies of
            them, which start in their current state.

    Raises:
        UnsupportedModelError: the model holds something that cannot be copied.
    """
    try:
        modules = [*model.modules()]
        memo = _not_copied(modules)
        for generator in kept_generators(model):
            memo[id(generator)] = generator if shares_generators else copied(generator)
        values = copy_modules(modules, memo, shares_hooks=True)
        new: nn.Module = copy.deepcopy(model, memo)
        _rebind(modules, values, memo)
    except (TypeError, RuntimeError, AttributeError) as error:
        raise UnsupportedModelError(
            f"The structure of {type(model).__name__} cannot be copied: {error}. Adaptation works "
            "on a private copy (weights shared); make copy.deepcopy(model) work."
        ) from error
    _put_into_eval_mode(new)
    return new


def _put_into_eval_mode(model: nn.Module) -> None:
    try:
        model.eval()  # its result is not used: a model's own train() may return None
    except Exception as error:  # whatever a train() of its own raises
        raise UnsupportedModelError(
            f"{type(model).__name__} cannot be put into eval mode: its eval() raises "
            f"{type(error).__name__}: {error}. Dent always runs a model in eval mode."
        ) from error


def _rebind(
    modules: Sequence[nn.Module], values: list[tuple[dict[str, Any], str]], memo: dict[int, Any]
) -> None:
    """Make functions and hooks of the copies refer to the copies' parts.

    Args:
        modules: the originals.
        values: what `copy_modules` returned.
        memo: the copies by the identity of the original.
    """
    for module in modules:
        if not is_plain(module) and id(module) in memo:  # not inside a scripted module
            attributes = vars(memo[id(module)])
            values += [(attributes, name) for name in attributes]
    rebinding = Rebinding(memo)
    for attributes, name in values:
        if name not in _NO_CALLABLES and isinstance(attributes[name], _MAY_LEAD_BACK):
            attributes[name] = rebinding.refill(attributes[name])


def _not_copied(modules: Sequence[nn.Module]) -> dict[int, Any]:
    """Map the identity of each object that is not deep-copied to its replacement in the copy."""
    memo: dict[int, Any] = {}
    for module in modules:
        # A replica of torch.nn.DataParallel lists its parameters separately, as plain tensors.
        for weights in (module._parameters, vars(module).get("_former_parameters", {})):
            for weight in weights.values():
                if weight is not None:
                    # Inference tensors cannot be saved for backward; all others are shared.
                    shared = weight.clone() if weight.is_inference() else weight.detach()
                    memo.setdefault(id(weight), shared)
        if not is_plain(module):  # share its hooks, whatever method copies it
            for kind in HOOKS:
                memo.update((id(hook), hook) for hook in getattr(module, kind).values())
    for tensor in kept_tensors(modules):
        if tensor.grad_fn is not None or tensor.is_inference():
            # Such as a tensor that a forward kept from an earlier batch: deepcopy refuses a graph.
            memo.setdefault(id(tensor), tensor.detach().clone())
    return memo


def kept_tensors(modules: Iterable[nn.Module]) -> Iterator[Tensor]:
    """Yield all tensors that modules keep in buffers and attributes, except parameters."""
    for module in modules:
        for name, value in vars(module).items():
            if name not in _NO_TENSORS and type(value) not in ATOMS:
                yield from tensors_in(value)


def tensors_in(value: object, visited: set[int] | None = None) -> Iterator[Tensor]:
    """Yield the tensors in nested containers; modules among them are not entered."""
    visited = set() if visited is None else visited
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple | set) and value and id(value) not in visited:
        visited.add(id(value))
        for item in value.values() if isinstance(value, dict) else value:
            if type(item) not in ATOMS:
                yield from tensors_in(item, visited)
