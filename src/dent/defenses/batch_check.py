"""Refuse what a defense cannot take: no batch, a transform of torch.func, a recorded graph."""

import torch
from torch import Tensor
from torch._C import _functorch

from dent.errors import ExportError, InputError

NO_GRAPH = (
    "A defense such as {name} cannot be scripted, traced or exported (TorchScript, torch.export, "
    "ONNX): every batch takes gradient steps of its own, and a recorded graph would hold those of "
    "one batch, or none. Deploy the Python object{compiled}, or export what unwrap() returns: that "
    "is the static model, without the defense."
)


def refuse_recording(name: str, compiled: str = "") -> None:
    """Refuse to run while a static graph is being recorded.

    Args:
        name: of the defense.
        compiled: how it can be compiled instead, if it can.

    Raises:
        ExportError: a graph is being recorded: torch.jit.trace, torch.export, ONNX.
    """
    if _is_recorded():
        raise ExportError(NO_GRAPH.format(name=name, compiled=compiled))


def _is_recorded() -> bool:
    if torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
        return True
    if hasattr(torch.compiler, "is_exporting"):
        return bool(torch.compiler.is_exporting())
    # torch 2.6 has no is_exporting: it is compiling, but not for torch.compile.
    return torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling()


def check_batch(x: object, name: str) -> None:
    """Check that a defense can take a batch.

    Args:
        x: what the defense was given.
        name: of the defense.

    Raises:
        InputError: `x` is no dense floating-point batch (N, ...) with at least one sample, or the
            defense runs within a transform of torch.func.
    """
    if not isinstance(x, Tensor):
        raise InputError(f"{name} expected a torch.Tensor, got {type(x).__name__}.")
    if _functorch.peek_interpreter_stack() is not None:
        raise InputError(
            "torch.func (vmap, grad, jacrev, jvp) cannot pass through a defense: use "
            "torch.autograd."
        )
    if x.layout != torch.strided or x.is_nested or x.is_meta:
        kind = "nested" if x.is_nested else "meta" if x.is_meta else str(x.layout)
        raise InputError(
            f"{name} expected a dense tensor that holds values, got a {kind} tensor of shape "
            f"{'(ragged)' if x.is_nested else tuple(x.shape)}."
        )
    if not x.is_floating_point():
        raise InputError(
            f"{name} expected floating-point input, got {x.dtype}: for images, pass "
            "x.float() / 255, in [0, 1]."
        )
    if x.dim() < 2:
        raise InputError(
            f"{name} expected a batch of shape (N, ...), got {tuple(x.shape)}: for one sample, "
            "pass x.unsqueeze(0)."
        )
    if x.numel() == 0:
        raise InputError(f"{name} expected at least one sample, got shape {tuple(x.shape)}.")
