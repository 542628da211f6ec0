"""The paper's recipes and fast ones, by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from dent.errors import ConfigError
from dent.names import RECIPE_FAMILIES, check_recipe, full_recipe
from dent.threat import as_norm
from dent.training.recipe import Recipe


def _fast(name: str, **fields: Any) -> Recipe:
    common: dict[str, Any] = {"lr": 0.2, "schedule": "one-cycle", "ema": 0.998}
    return Recipe(name, **(common | fields))


_LINF: Final[dict[str, Any]] = {"norm": "linf", "eps": "8/255", "step_size": "2/255", "steps": 10}
_L2: Final[dict[str, Any]] = {"norm": "l2", "eps": "0.5", "step_size": "0.1", "steps": 10}

RECIPES: Final[dict[str, Recipe]] = {
    recipe.name: recipe
    for recipe in (
        # The paper's recipes (sections 4.3, 4.4): pycls' CIFAR reference, with Nesterov momentum.
        Recipe("nominal", "nominal", epochs=200),
        Recipe("adversarial-linf", "adversarial", epochs=200, **_LINF),
        Recipe("adversarial-l2", "adversarial", epochs=200, **_L2),
        # beta 6 is Zhang et al.'s value; the paper does not state one.
        Recipe("trades-linf", "trades", epochs=200, beta=6.0, **_LINF),
        Recipe("trades-l2", "trades", epochs=200, beta=6.0, **_L2),
        # For CPUs and short GPU sessions: a step of one eps, after noise of two eps (de Jorge et
        # al.), or of one eps for l2.
        _fast("fast-nominal", method="nominal", epochs=10, pad=2),
        _fast(
            "fast-linf", method="n-fgsm", epochs=14, noise=2.0, norm="linf", eps="8/255",
            step_size="8/255", steps=1, pad=2,
        ),
        _fast(
            "fast-l2", method="n-fgsm", epochs=14, noise=1.0, norm="l2", eps="0.5",
            step_size="0.5", steps=1, pad=2,
        ),
    )
}  # fmt: skip
"""Every recipe that `dent train --recipe` knows, by name."""


_OF_AN_ATTACK: Final = ("eps", "step_size", "steps", "noise", "beta")


def named(name: str, norm: str | None = None, **changes: Any) -> Recipe:
    """Return a recipe by name, with some of its fields changed.

    Args:
        name: one of `RECIPES`, or a family ("adversarial", "trades", "fast") together with `norm`.
        norm: "linf" or "l2", for a family. By default "linf", but "fast" without a norm is nominal.
        **changes: fields of `Recipe`; None keeps the recipe's own value.

    Raises:
        UnknownNameError: there is no such recipe; the message suggests one.
        ConfigError: a changed field is out of range or does not fit the method, or the recipe does
            not train against `norm`.
    """
    norm = None if norm is None else as_norm(norm)
    check_recipe(name, norm)
    full = full_recipe(name, norm)
    recipe = RECIPES[full]
    if norm is not None and recipe.norm != norm:
        raise ConfigError(
            f"recipe {full!r} trains {_against(recipe)}, not against {norm}: name a family "
            f"({', '.join(RECIPE_FAMILIES)}) with the norm, or leave the norm out."
        )
    useless = [key for key in _OF_AN_ATTACK if changes.get(key) is not None]
    if recipe.method == "nominal" and useless:
        norms = "add a norm (--norm linf or l2), or " if name in RECIPE_FAMILIES else ""
        raise ConfigError(
            f"recipe {full!r} trains without an attack, so it has no {', '.join(useless)}: {norms}"
            f"leave {'it' if len(useless) == 1 else 'them'} out"
        )
    return replace(recipe, **{key: value for key, value in changes.items() if value is not None})


def _against(recipe: Recipe) -> str:
    return "without an attack" if recipe.norm is None else f"against {recipe.norm}"
