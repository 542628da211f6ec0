"""The one way in which reference defenses take a gradient."""

import torch
from torch import Tensor

from dent.errors import UnsupportedModelError


def gradient(objective: Tensor, of: Tensor, *, keep_graph: bool = False) -> Tensor:
    """Return the gradient of a scalar, without writing to any `.grad`.

    Args:
        objective: () scalar.
        of: what to differentiate by, any shape.
        keep_graph: make the gradient itself differentiable.

    Raises:
        UnsupportedModelError: the model between the two cuts the graph.
    """
    if not objective.requires_grad:
        raise UnsupportedModelError(
            "The model's output does not depend differentiably on what is optimized: does its "
            "forward use torch.no_grad(), detach() or NumPy?"
        )
    (found,) = torch.autograd.grad(objective, [of], create_graph=keep_graph, materialize_grads=True)
    return found
