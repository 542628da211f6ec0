"""Compute the part of a model before the first adapted layer once for all steps.

If only the last layers are adapted, everything before them computes the same at every step. Each
module before them keeps its last output, and returns it again as long as its input is the same.
"""

import weakref
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dent.adaptation.autocast import Autocast, autocast_of
from dent.adaptation.private_copy import kept_tensors
from dent.adaptation.random_state import global_draws, kept_generators


class _RememberedAnswer(NamedTuple):
    """Output and input of a module, with their versions, which reveal writes in place.

    It serves only under the mixed precision under which it was computed.
    """

    given: Tensor
    given_version: int
    answer: Tensor
    answer_version: int
    autocast: Autocast

    def intact(self) -> bool:
        return (self.given._version, self.answer._version) == (
            self.given_version,
            self.answer_version,
        )

    def answers(self, x: Tensor) -> bool:
        if self.autocast != autocast_of(x.device):
            return False
        if x is self.given:
            return True
        kinds = [(t.shape, t.dtype, t.device, t.stride()) for t in (x, self.given)]
        return kinds[0] == kinds[1] and torch.equal(x, self.given)


def patched_modules(model: nn.Module) -> set[nn.Module]:
    """Return the modules with forward hooks, or with a forward that is not their class's.

    Both may store what a later module uses, anywhere.
    """
    return {
        module
        for module in model.modules()
        if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
    }


class Prefix:
    """Cache of the outputs of the modules before the first adapted layer, for one batch.

    The cache serves a module only if it takes one tensor, bit-identical to the last one, returns
    one tensor, draws no random numbers, sets no attribute, needs no gradient, and has no submodule
    with a hook or with a forward of its own. Everything else is computed, and so is everything
    whose input or output was modified in place since.

    Args:
        model: the model whose copies use this cache, if it outlives one call.
        statistics: the setting by which they normalize.
    """

    def __init__(self, model: nn.Module | None = None, statistics: str = "train") -> None:
        self._kept: dict[str, _RememberedAnswer] = {}
        self._statistics = statistics
        # Weak references: an adaptation must not keep its model alive.
        contents = [] if model is None else _contents(model)
        self._contents = [(weakref.ref(item), state) for item, state in contents]

    def serves(self, model: nn.Module, statistics: str) -> bool:
        """Return whether copies of a model may use this cache.

        True if it is from the same model, with the same statistics, and the model has since got no
        other layers, weights, buffers or settings.
        """
        now = _contents(model)
        return (
            self._statistics == statistics
            and len(now) == len(self._contents)
            and all(
                reference() is item and state == before
                for (item, state), (reference, before) in zip(now, self._contents, strict=True)
            )
        )

    def attach(
        self,
        model: nn.Module,
        adapted: Collection[nn.Module],
        patched: Collection[nn.Module] = (),
    ) -> None:
        """Make the modules of a private copy use this cache.

        Args:
            model: a private copy; the modules before the first adapted layer get a new `forward`.
            adapted: its adapted layers.
            patched: its modules whose effects the class does not show; see `patched_modules`.
        """
        for name, module in _before(model, adapted):
            # A hook of the module itself runs, even if its forward does not.
            inside = any(inner in patched for inner in module.modules() if inner is not module)
            if "forward" not in vars(module) and not inside and not kept_generators(module):
                vars(module)["forward"] = self._remembering(name, module)

    def _remembering(self, name: str, module: nn.Module) -> Any:
        """Return a forward that gives its last answer again, if nothing that it depends on changed.

        Args:
            name: Dotted name of the module.
            module: A module of a private copy.
        """
        # A strong reference would make a cycle, which keeps every copy until garbage collection.
        reference, forward = weakref.ref(module), type(module).forward

        def answer(*args: Any, **keywords: Any) -> Any:
            alone = len(args) == 1 and not keywords and isinstance(args[0], Tensor)
            if not alone or args[0].requires_grad:
                return forward(reference(), *args, **keywords)
            x: Tensor = args[0]
            remembered = self._kept.get(name)
            if remembered is not None and remembered.intact() and remembered.answers(x):
                return remembered.answer
            given_version = None if x.is_inference() else x._version  # before a forward writes to x
            draws, before = global_draws(x.device), _attributes(reference())
            output = forward(reference(), x)
            same_draws = draws == global_draws(x.device)
            pure = same_draws and _same(before, _attributes(reference()))
            if given_version is not None and pure and _constant(output):
                self._kept[name] = _RememberedAnswer(
                    x, given_version, output, output._version, autocast_of(x.device)
                )
            return output

        return answer


def _contents(model: nn.Module) -> list[tuple[Any, Any]]:
    """Return a model's modules with their settings, and its tensors with their versions."""
    modules = [
        (
            module,
            {
                name: value
                for name, value in vars(module).items()
                if name != "training" and isinstance(value, int | float | str | None)
            },
        )
        for module in model.modules()
    ]
    tensors = [
        (tensor, None if tensor.is_inference() else tensor._version)
        for tensor in (*model.parameters(), *kept_tensors(model.modules()))
    ]
    return modules + tensors


def _attributes(module: nn.Module | None) -> list[Any]:
    """Return the attributes of a module and of its submodules, and the items of containers."""
    found: list[Any] = []
    for each in module.modules() if module is not None else ():
        for name, value in vars(each).items():
            found += [name, value]
            if isinstance(value, Mapping):
                found += value.values()
            elif isinstance(value, list | tuple | set | deque):
                found += value
    versions = [t._version for t in found if isinstance(t, Tensor) and not t.is_inference()]
    return found + versions


def _same(before: list[Any], after: list[Any]) -> bool:
    return len(before) == len(after) and all(
        one is other or (type(one) is type(other) is int and one == other)
        for one, other in zip(before, after, strict=True)
    )


def _constant(output: Any) -> bool:
    return isinstance(output, Tensor) and not output.requires_grad and not output.is_inference()


def _before(
    module: nn.Module, adapted: Collection[nn.Module], path: str = ""
) -> Iterator[tuple[str, nn.Module]]:
    """Yield the largest modules that are registered before the first adapted layer."""
    for name, child in module.named_children():
        if child in adapted:
            return
        if any(inner in adapted for inner in child.modules()):
            yield from _before(child, adapted, f"{path}{name}.")
            return
        yield f"{path}{name}", child
