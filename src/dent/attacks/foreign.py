"""Attacks of foolbox and adv-lib over whole batches, as attacks of this package.

The foreign attack gets a model that queries the defense with the whole batch, and has the gradient
that `PGD` follows. Its images are projected, queried and checked like those of any other attack.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Final, Literal, final, get_args

import torch
from torch import Tensor, nn

from dent.attacks.base import Attack, Outcome
from dent.attacks.best import Best
from dent.attacks.losses import margin
from dent.errors import ConfigError, DentError, MissingExtraError
from dent.support.checks import check_choice, is_count
from dent.support.extras import installing, require
from dent.support.suggest import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable

    from dent.attacks.querier import Querier
    from dent.threat import Norm, ThreatModel

Library = Literal["foolbox", "adv-lib"]
_MODULES: Final[Mapping[str, str]] = {
    "foolbox": "foolbox.attacks",
    "adv-lib": "adv_lib.attacks",
}
_EPS: Final = ("ε", "eps", "epsilon")
_ORDER: Final[Mapping[str, float]] = {"linf": float("inf"), "l2": 2.0, "l1": 1.0}
_Keywords = tuple[tuple[str, Any], ...]


@final
@dataclass(frozen=True)
class Foreign(Attack):
    """An attack of another library.

    It must query whole batches, with every member in its place. An attack that queries only some
    members stops with an error, because a defense may predict them differently than in their batch.
    For a batch-independent defense, the result is each member's worst image of all queries inside
    the threat model. For a batch-dependent defense, it is the worst whole batch.
    """

    library: Library
    """`foolbox` or `adv-lib`."""
    attack: str
    """The name of the class in `foolbox.attacks`, or of the function in `adv_lib.attacks`."""
    keywords: Mapping[str, Any] | _Keywords = ()
    """Arguments of the class or function: numbers, strings, booleans or None. The run supplies the
    model, images, labels, eps and norm."""

    def __post_init__(self) -> None:
        """Check every field; the library is not imported."""
        check_choice("library", self.library, get_args(Library))
        attack: object = self.attack
        if not isinstance(attack, str) or not attack.isidentifier():
            raise ConfigError(f"attack must be the name of an attack, got {attack!r}")
        for key, value in _pairs(self.keywords):
            if not isinstance(key, str) or not isinstance(value, bool | int | float | str | None):
                raise ConfigError(
                    f"keywords of {self.attack} must be numbers, texts, true, false or None, so "
                    f"that a record can say them, got {key!r}: {value!r}"
                )
        object.__setattr__(self, "keywords", tuple(sorted(dict(self.keywords).items())))
        super().__post_init__()

    @property
    def default_name(self) -> str:
        """The name of the library and the attack."""
        return f"{self.library}-{self.attack}"

    @property
    def versions(self) -> dict[str, str]:
        """The version of the library."""
        try:
            return {self.library: version(self.library)}
        except PackageNotFoundError:
            return {}

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON types."""
        return super().to_dict() | {"keywords": dict(self.keywords)}

    def longer(self, norm: Norm = "linf") -> Foreign | None:
        """Return the attack with twice the `steps`, or None if they are not among the keywords."""
        del norm
        keywords = dict(self.keywords)
        if not is_count(keywords.get("steps")):
            return None
        return replace(self, keywords=keywords | {"steps": 2 * keywords["steps"]})

    def run(self, target: Querier, threat: ThreatModel, seed: int) -> Outcome:
        """Run the foreign attack and query its result."""
        del seed  # it draws from the global generators, which are seeded
        best = Best(target)
        best.offer_served(target.natural)
        if not best.complete():
            model = _Door(target, threat, best, self.name)
            attack = _named(self)
            with torch.enable_grad():
                adversarial = _RUN[self.library](self, attack, model, target, threat)
            best.offer_served(threat.project(adversarial.detach(), target.natural))
        outcome, worst = best.outcome(), target.worst
        return outcome if worst is None else Outcome(worst.images, worst.fooled)


def from_foolbox(attack: str, *, name: str = "", **keywords: Any) -> Foreign:
    """Return an attack of foolbox: `from_foolbox("LinfPGD", steps=40)`.

    Args:
        attack: The name of its class in `foolbox.attacks`.
        name: Name for results.
        **keywords: Arguments of the class.

    Raises:
        ConfigError: A keyword cannot be recorded.
    """
    return Foreign("foolbox", attack, keywords, name=name)


def from_adv_lib(attack: str, *, name: str = "", **keywords: Any) -> Foreign:
    """Return an attack of adv-lib: `from_adv_lib("pgd_linf", steps=40)`.

    Args:
        attack: The name of its function in `adv_lib.attacks`.
        name: Name for results.
        **keywords: Arguments of the function. The threat model gives eps, and norm if not set.

    Raises:
        ConfigError: A keyword cannot be recorded.
    """
    return Foreign("adv-lib", attack, keywords, name=name)


class _Door(nn.Module):
    """The model given to a foreign attack. It only queries whole batches."""

    def __init__(self, target: Querier, threat: ThreatModel, best: Best, name: str) -> None:
        super().__init__()
        self._target, self._threat, self._best, self._name = target, threat, best, name
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, classes), with a graph to the images only, if they need a gradient."""
        natural = self._target.natural
        if images.shape != natural.shape:
            raise ConfigError(
                f"{self._name} asks about images {tuple(images.shape)} of a batch "
                f"{tuple(natural.shape)}: an attack must submit the whole batch. Choose an attack "
                "that keeps all members, or a single restart"
            )
        if torch.is_grad_enabled() and images.requires_grad:
            logits: Tensor = _Apart.apply(images, self._ask)
        else:
            with torch.no_grad():
                logits = self._ask(images.detach())
        self._offer(images.detach(), logits.detach())
        return logits

    def _ask(self, images: Tensor) -> Tensor:
        return self._target(images.to(self._target.natural.dtype))

    def _offer(self, images: Tensor, logits: Tensor) -> None:
        """Keep the best images inside the threat model, if the defense is batch-independent."""
        target = self._target
        if target.batch_dependent:
            return  # the querier keeps the worst whole batch
        images = images.to(target.natural.dtype)
        inside = (self._threat.check(images, target.natural) <= 0).to(images.device)
        wrong = inside & (logits.argmax(dim=1) != target.labels)
        loss = torch.where(inside, margin(logits, target.labels), -torch.inf)
        self._best.offer(images, wrong, loss)


def _pairs(keywords: object) -> list[tuple[object, object]]:
    try:
        return [*dict(keywords).items()]  # type: ignore[call-overload]
    except (TypeError, ValueError):
        raise ConfigError(
            f"keywords must be a mapping, such as {{'steps': 10}}, got {keywords!r}"
        ) from None


class _Apart(torch.autograd.Function):
    """Logits whose graph ends at the images, so that `.backward()` writes nowhere else."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, ask: Callable[[Tensor], Tensor]) -> Tensor:
        """Query the defense and keep its graph separate."""
        with torch.enable_grad():
            ctx.leaf = images.detach().requires_grad_()
            ctx.logits = ask(ctx.leaf)
        logits: Tensor = ctx.logits.detach().clone()
        return logits

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Return the gradient to the images."""
        (gradient,) = torch.autograd.grad(ctx.logits, ctx.leaf, gradients[0], retain_graph=True)
        return gradient, None


def _module(attack: Foreign) -> Any:
    name, purpose = _MODULES[attack.library], f"the attack {attack.name!r}"
    if attack.library == "foolbox":
        return require(name, purpose, extra="foolbox")
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtraError(
            f"{purpose} needs adv-lib, which cannot be imported here ({error}): "
            f"{installing('adv-lib')}"
        ) from error


def _named(attack: Foreign) -> Any:
    """Return the class or function of the other library."""
    module = _module(attack)
    kind = getattr(module, attack.attack, None)
    if not callable(kind):
        public = [key for key in vars(module) if not key.startswith("_")]
        raise ConfigError(
            f"{attack.library} has no attack {attack.attack!r}."
            f"{did_you_mean(attack.attack, public)}"
        )
    return kind


def _foolbox(
    attack: Foreign, kind: Any, door: _Door, target: Querier, threat: ThreatModel
) -> Tensor:
    foolbox: Any = require("foolbox", f"the attack {attack.name!r}", extra="foolbox")
    keywords = dict(attack.keywords)
    if "distance" in inspect.signature(kind).parameters:
        keywords.setdefault("distance", getattr(foolbox.distances, threat.norm))
    try:
        foreign_attack = kind(**keywords)
        distance = getattr(foreign_attack, "distance", None)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{attack.attack} of foolbox: {error}") from error
    except ImportError as error:
        raise MissingExtraError(
            f"{attack.attack} of foolbox needs {error.name}, which cannot be imported here "
            f"({error}): {installing(error.name or 'foolbox')}"
        ) from error
    order = getattr(distance, "p", None)
    if order is not None and float(order) != _ORDER[threat.norm]:
        raise ConfigError(
            f"{attack.attack} of foolbox is made for another norm than {threat.norm} (l{order:g})"
        )
    model = foolbox.PyTorchModel(door, bounds=threat.bounds, device=target.natural.device)
    try:
        adversarial: Tensor = foreign_attack(
            model, target.natural.clone(), target.labels.clone(), epsilons=threat.eps
        )[1]
    except DentError:
        raise
    except (AssertionError, NotImplementedError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{attack.attack} of foolbox failed ({type(error).__name__}: {error})"
        ) from error
    return adversarial


def _adv_lib(
    attack: Foreign, function: Any, door: _Door, target: Querier, threat: ThreatModel
) -> Tensor:
    if threat.bounds != (0.0, 1.0):
        raise ConfigError(f"adv-lib keeps pixels in [0, 1], the threat model has {threat.bounds}")
    parameters = inspect.signature(function).parameters
    keywords = dict(attack.keywords)
    keywords |= {key: threat.eps for key in _EPS if key in parameters}
    if "norm" in parameters:
        keywords.setdefault("norm", _ORDER[threat.norm])
    for key in keywords:
        if key not in parameters:
            raise ConfigError(
                f"{attack.attack} of adv-lib takes no {key!r}.{did_you_mean(key, parameters)}"
            )
    adversarial: Tensor = function(door, target.natural.clone(), target.labels.clone(), **keywords)
    return adversarial


_RUN: Final[Mapping[str, Callable[[Foreign, Any, _Door, Querier, ThreatModel], Tensor]]] = {
    "foolbox": _foolbox,
    "adv-lib": _adv_lib,
}
