"""Functions that torch.compile leaves to Python, where a Dent is inside of what it compiles."""

import sys
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from torch._compile import _disable_dynamo

Given = ParamSpec("Given")
Returned = TypeVar("Returned")


def untraced(function: Callable[Given, Returned]) -> Callable[Given, Returned]:
    """Make torch.compile run a function, and all that it calls, as they are.

    `torch.compiler.disable` does so too, but loads the compiler. That takes seconds, and whoever
    compiles nothing does not wait for it here.

    Args:
        function: what walks over a model's Python objects, which the compiler cannot follow.
    """
    # PyTorch's own, for its optimizers: the compiler never looks into it, in any version.
    disabled = _disable_dynamo(function)

    @wraps(function)
    def call(*args: Given.args, **named: Given.kwargs) -> Returned:
        compiles = "torch._dynamo" in sys.modules
        return disabled(*args, **named) if compiles else function(*args, **named)

    return call
