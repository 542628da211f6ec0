"""The adaptive attacks by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from dent.attacks.adaptive.adaptive_apgd import AdaptiveAPGD
from dent.attacks.adaptive.collateral import Collateral
from dent.attacks.adaptive.ladder import RUNGS
from dent.attacks.adaptive.model_space import ENSEMBLES, ModelSpace
from dent.attacks.adaptive.rays import RayS
from dent.attacks.adaptive.surrogates import Surrogates

if TYPE_CHECKING:
    from dent.attacks.base import Attack

ADAPTIVE: dict[str, Callable[..., Attack]] = {
    **{f"adaptive-{rung}": partial(AdaptiveAPGD, rung) for rung in RUNGS},
    # Seeks confident wrong predictions of the static model. There the gradient of the entropy
    # vanishes, so a defense that follows it does not change.
    "zero-update": partial(AdaptiveAPGD, "transfer", losses=("confident",), name="zero-update"),
    **{ensemble: partial(ModelSpace, ensemble) for ensemble in ENSEMBLES},
    "surrogates": Surrogates,
    "collateral": Collateral,
    "rays": RayS,
}
