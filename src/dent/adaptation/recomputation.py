"""Notice modules that run again in a backward pass, as activation checkpointing makes them."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch._C import _autograd
from torch.autograd.graph import disable_saved_tensors_hooks

from dent.errors import InputError, UnsupportedModelError

_REFUSED: Final = "dent refuses hooks on saved tensors here"


class Recomputation:
    """Record of whether modules ran while they were watched.

    Watch between forwards only: then nothing is slower, and what runs belongs to a backward pass.

    Attributes:
        found: whether one ran.
    """

    def __init__(self) -> None:
        self.found = False
        self._handles: list[Any] = []

    def watch(self, model: nn.Module) -> None:
        """Watch a model and its submodules, until one runs or `stop` is called."""
        if self.found or self._handles:
            return
        for module in model.modules():
            if not isinstance(module, torch.jit.ScriptModule):  # these run no hooks of Python
                self._handles.append(module.register_forward_pre_hook(self._note))

    def stop(self) -> None:
        """Stop watching."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _note(self, *_: object) -> None:
        self.found = True


@contextmanager
def recomputation_refused(defense: str, x: Tensor) -> Iterator[None]:
    """Refuse models that run layers again in the backward pass, if `x` needs a gradient.

    For defenses that change a forward from outside: a part that ran again would run unchanged.

    Args:
        defense: the name of the defense.
        x: the batch that the model runs on within this context.

    Raises:
        UnsupportedModelError: the model uses activation checkpointing, or other hooks on the
            tensors that autograd saves.
    """
    refused = _hooks_refused() if torch.is_grad_enabled() and x.requires_grad else nullcontext()
    try:
        with refused:
            yield
    except (RuntimeError, InputError) as error:
        if _REFUSED not in str(error):
            raise
        raise UnsupportedModelError(
            f"{defense} has no gradient through a model with activation checkpointing: the "
            "backward pass would run its layers again without the defense. Switch "
            "checkpointing off (set_grad_checkpointing(False) in timm, "
            "gradient_checkpointing_disable() in transformers)."
        ) from error


@contextmanager
def _hooks_refused() -> Iterator[None]:
    """Refuse further hooks on saved tensors; those of the caller, around the defense, stay."""
    with ExitStack() as stack:
        try:
            stack.enter_context(disable_saved_tensors_hooks(_REFUSED))
        except RuntimeError:  # the caller has hooks
            stack.enter_context(_further_hooks_refused())
        yield


@contextmanager
def _further_hooks_refused() -> Iterator[None]:
    before = _autograd._saved_tensors_hooks_get_disabled_error_message()
    with suppress(TypeError):  # an older PyTorch cannot refuse hooks under others
        _autograd._saved_tensors_hooks_disable(_REFUSED, fail_if_non_empty=False)
    try:
        yield
    finally:
        if before is None:
            _autograd._saved_tensors_hooks_enable()
        else:
            with suppress(TypeError):
                _autograd._saved_tensors_hooks_disable(before, fail_if_non_empty=False)
