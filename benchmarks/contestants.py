"""The contestants: our defenses in every setting, and plain ones after the paper's listing."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from baseline import PlainDent, PlainDentPlus
from torch import Tensor, nn

from dent import DENT, DENT_NOMINAL, DENT_PLUS, Dent, Performance

SETTINGS: Final = {
    "preserve": Performance(memory_format="preserve"),
    "default": Performance(),
    "compiled": Performance(compile=True),
    "bfloat16": Performance(precision="bfloat16"),
    "compiled bfloat16": Performance(compile=True, precision="bfloat16"),
}
LISTING: Final = "the listing, eager"
_PLUS_STEPS: Final = 6
_MAIN: Final = ("default", "compiled")
"""Settings in which the defenses with test statistics are timed as well."""


@dataclass(frozen=True)
class Contestant:
    """A defense in one setting, or the static model, to be timed.

    Attributes:
        what: Name of the defense, such as `dent, 10 steps`.
        setting: A name in `SETTINGS`, or `LISTING`; `eager` for the static model.
        steps: Number of steps.
        run: Returns the logits of a batch.
    """

    what: str
    setting: str
    steps: int
    run: Callable[[Tensor], Tensor]

    @property
    def name(self) -> str:
        """A name that is unique for every contestant."""
        return f"{self.what}, {self.setting}"


def contestants(
    model: nn.Module, steps: Sequence[int], settings: Sequence[str]
) -> Mapping[str, Contestant]:
    """Return all contestants by name, the static model first.

    Args:
        model: The static model, in eval mode.
        steps: Numbers of steps of batch-wise dent. If 10 is among them, dent with 10 steps is also
            timed with test statistics, as dent-nominal, and as the listing.
        settings: Names in `SETTINGS`.
    """
    plus, few = f"dent+, {_PLUS_STEPS} steps", [count for count in steps if count == 10]
    found = [Contestant("static", "eager", 0, model)]
    for count in steps:
        for setting in settings:
            defense = Dent(model, replace(DENT, steps=count), SETTINGS[setting])
            found.append(Contestant(f"dent, {count} steps", setting, count, defense))
    for setting in settings:
        performance = SETTINGS[setting]
        defense = Dent(model, DENT_PLUS, performance)
        found.append(Contestant(plus, setting, _PLUS_STEPS, defense))
        nominal = replace(DENT_NOMINAL, smoothing=None)
        for count in few if setting in _MAIN else ():
            defense = Dent(model, nominal, performance)
            what = f"dent, {count} steps, test statistics"
            found.append(Contestant(what, setting, count, defense))
            smoothed = Dent(model, DENT_NOMINAL, performance)
            found.append(Contestant(f"dent-nominal, {count} steps", setting, count, smoothed))
    for count in few:
        plain = PlainDent(model, count, test_statistics=False)
        found.append(Contestant(f"dent, {count} steps", LISTING, count, plain))
        plain = PlainDent(model, count, test_statistics=True)
        found.append(Contestant(f"dent, {count} steps, test statistics", LISTING, count, plain))
    found.append(Contestant(plus, LISTING, _PLUS_STEPS, PlainDentPlus(model, _PLUS_STEPS)))
    return {each.name: each for each in found}
