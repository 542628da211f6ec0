"""Notice modules that run again in a backward pass, as activation checkpointing makes them."""

from typing import Any

import torch
from torch import nn


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
