"""Whether a model's classes are the dataset's, in the same order, where both are named."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from dent.errors import ClassNamesWarning, UnsupportedModelError
from dent.support.plural import counted

if TYPE_CHECKING:
    from torch import nn

_SHOWN: Final = 3


def check_class_names(model: nn.Module, classes: Sequence[str]) -> None:
    """Compare the class names that a model brings with those of a dataset.

    Most models bring none (an attribute `classes`), and most pairs of names are synonyms at most. A
    name that both have must stand for the same label, or every accuracy would be wrong.

    Args:
        model: Any model.
        classes: The dataset's class names, in the order of its labels; as many as the model's.

    Raises:
        UnsupportedModelError: Both have the same names, in another order.

    Warns:
        ClassNamesWarning: No name of the model is one of the dataset's.
    """
    own = getattr(model, "classes", None)
    if not own or len(own) != len(classes):
        return
    ours, theirs = [_plain(name) for name in own], [_plain(name) for name in classes]
    if _is_numbered(ours) or _is_numbered(theirs):
        return
    same = sum(a == b for a, b in zip(ours, theirs, strict=True))
    unique = {name for name in ours if ours.count(name) == theirs.count(name) == 1}
    moved = [i for i, name in enumerate(ours) if name in unique and name != theirs[i]]
    # Of ImageNet's thousand names, two lists write a few otherwise.
    if len(moved) > len(ours) / 100:
        shown = "; ".join(
            f"{own[i]!r} is label {i} of the model and {theirs.index(ours[i])} of the dataset"
            for i in moved[:_SHOWN]
        )
        raise UnsupportedModelError(
            f"the model and the dataset have {counted(len(moved), 'class')} in another order: "
            f"{shown}. Reorder the logits in a model of your own, package.module:factory"
        )
    if not same and not moved:
        warnings.warn(
            f"the model's classes ({', '.join(own[:_SHOWN])}, ...) have other names than the "
            f"dataset's ({', '.join(classes[:_SHOWN])}, ...): make sure that they mean the same, "
            "in the same order",
            ClassNamesWarning,
            stacklevel=2,
        )


def _plain(name: str) -> str:
    """A name as different lists write it: `Tench, Tinca tinca` and `tench` are one."""
    return " ".join(name.partition(",")[0].casefold().replace("_", " ").replace("-", " ").split())


def _is_numbered(names: Sequence[str]) -> bool:
    return all(name.removeprefix("label ").isdecimal() for name in names)
