"""Check that a model and a dataset have the same classes in the same order, if both name them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from dent.errors import ClassNamesWarning, UnsupportedModelError
from dent.support.plural import counted, first_few, listed

if TYPE_CHECKING:
    from torch import nn

_SHOWN: Final = 3


def check_class_names(model: nn.Module, classes: Sequence[str]) -> None:
    """Compare a model's class names with a dataset's.

    Most models have no class names (an attribute `classes`), and then nothing is checked. A model
    and a dataset often use different names for the same class. But a name that both have must stand
    for the same label, or every accuracy would be wrong.

    Args:
        model: Any model.
        classes: The dataset's class names, in the order of its labels. If their number is not the
            model's, nothing is checked.

    Raises:
        UnsupportedModelError: More than 1% of the model's names stand for another label in the
            dataset.

    Warns:
        ClassNamesWarning: None of the model's names is one of the dataset's.
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
    # Two lists of ImageNet's 1000 names differ in a few of them.
    if len(moved) > len(ours) / 100:
        places = [
            f"{own[i]!r} is label {i} of the model and {theirs.index(ours[i])} of the dataset"
            for i in moved
        ]
        raise UnsupportedModelError(
            f"the model and the dataset have {counted(len(moved), 'class')} in another order: "
            f"{'; '.join(first_few(places, _SHOWN))}. Reorder the logits in a model of your own, "
            "package.module:factory"
        )
    if not same and not moved:
        warnings.warn(
            f"the model's classes ({listed(own, _SHOWN)}) have other names than the "
            f"dataset's ({listed(classes, _SHOWN)}): make sure that they mean the same, "
            "in the same order",
            ClassNamesWarning,
            stacklevel=2,
        )


def _plain(name: str) -> str:
    """Return a name in a form that lists share: `Tench, Tinca tinca` and `tench` become equal."""
    return " ".join(name.partition(",")[0].casefold().replace("_", " ").replace("-", " ").split())


def _is_numbered(names: Sequence[str]) -> bool:
    return all(name.removeprefix("label ").isdecimal() for name in names)
