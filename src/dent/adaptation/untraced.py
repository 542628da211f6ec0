"""Functions that torch.compile leaves to Python when it compiles code that contains a Dent."""

import sys
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from torch._compile import _disable_dynamo

Given = ParamSpec("Given")
Returned = TypeVar("Returned")


def untraced(function: Callable[Given, Returned]) -> Callable[Given, Returned]:
    """Exclude a function, and everything it calls, from torch.compile.

    `torch.compiler.disable` does this too, but it loads the compiler, which takes seconds. Users
    who compile nothing need not wait for it.

    Args:
        function: traverses a model's Python objects, which the compiler cannot trace.
    """
    # PyTorch uses `_disable_dynamo` for its own optimizers, so every version respects it.
    disabled = _disable_dynamo(function)

    @wraps(function)
    def call(*args: Given.args, **named: Given.kwargs) -> Returned:
        compiles = "torch._dynamo" in sys.modules
        return disabled(*args, **named) if compiles else function(*args, **named)

    return call
