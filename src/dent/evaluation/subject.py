"""The objects to evaluate, and their description in records."""

import inspect
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from torch import nn

from dent.attacks import Attack, Defense, DynamicDefense, is_batch_dependent
from dent.attacks.adaptive.capabilities import takes_no_steps
from dent.data.dataset import ImageDataset, check_attributes
from dent.data.registry import classes_of
from dent.defenses import describe as describe_defense
from dent.defenses.base import STATIC as UNCHANGING
from dent.errors import ConfigError, InputError
from dent.evaluation.attack_specs import attack_spec
from dent.evaluation.records.naming import attack_contradiction, contradiction
from dent.evaluation.records.plan import Plan, make_plan, units
from dent.evaluation.records.spec import (
    STATIC,
    AttackSpec,
    DatasetSpec,
    DefenseSpec,
    EvaluationSpec,
    ModelSpec,
    Settings,
    ThreatSpec,
)
from dent.evaluation.suites import scheduled
from dent.kinds import kind_of
from dent.models.check import check_is_module
from dent.models.shipped_source import ShippedModels
from dent.models.weights import have_same_weights, weights_digest
from dent.support.devices import device_of
from dent.support.plural import counted
from dent.threat import ThreatModel

SURROGATES: Final = frozenset({"resnet-14-2-l2", "resnet-14-2-linf", "resnet-14-2-nominal"})
"""The bundled models to transfer attacks from. More would change the results of the suite."""


@dataclass(frozen=True)
class Subject:
    """The model, dataset, defenses, attacks and threat model of an evaluation.

    Attributes:
        model: The static model, in eval mode, on the device to run on. It maps images in [0, 1] to
            logits.
        dataset: Labeled images.
        defenses: Dynamic defenses or modules by name. The entry `"static"`, if there is one, is
            the static reference; otherwise `model` is.
        attacks: Attacks with different names. Without attacks, only clean accuracy is measured.
        threat: The threat model of all attacks.
        model_name: Name of the model in records; the name of its class by default.
    """

    model: nn.Module
    dataset: ImageDataset
    defenses: Mapping[str, Defense]
    attacks: Sequence[Attack]
    threat: ThreatModel
    model_name: str | None = None

    def sized(self, settings: Settings) -> "Subject":
        """Return the same subject, with its attacks set up for the batch size of `settings`."""
        attacks = tuple(attack.sized(settings.batch_size) for attack in self.attacks)
        return replace(self, attacks=attacks)

    def lineup(self, settings: Settings) -> dict[str, Defense]:
        """Return the defenses by name, with the static model first.

        Raises:
            ConfigError: There is no defense, or a name is not allowed.
            InputError: An object is not a defense, or is a module in training mode.
        """
        if not isinstance(self.defenses, Mapping):
            raise InputError(
                "defenses must be a dict by name, such as {'mine': defense}, got "
                f"{type(self.defenses).__name__}"
            )
        defenses = {name: item for name, item in self.defenses.items() if name != STATIC}
        static: dict[str, Defense] = {}
        if settings.static or STATIC in self.defenses:
            static = {STATIC: self.defenses.get(STATIC, self.model)}
        if not (static or defenses):
            raise ConfigError("there is no defense to evaluate: give one, or set static=True")
        for name, defense in (static | defenses).items():
            _check_name("defense", name)
            _check_defense(name, defense)
        return static | defenses

    def surrogates(self) -> dict[str, nn.Module]:
        """Return the models of `SURROGATES` with the dataset's classes, to transfer attacks from.

        They are on the device of the static model. The static model itself is left out, because
        attacks have it anyway.
        """
        source, device = ShippedModels(), device_of(self.model)
        own_digest = weights_digest(self.model)
        models: dict[str, nn.Module] = {}
        for card in source.cards():
            has_classes = classes_of(card.dataset) == tuple(self.dataset.classes)
            if card.name not in SURROGATES or not has_classes:
                continue
            model = source.load(card.name).eval().requires_grad_(requires_grad=False)
            if weights_digest(model) != own_digest:
                models[card.name] = model.to(device)
        return models

    def attack(self, name: str) -> Attack:
        """Return the attack with this name."""
        return next(attack for attack in self.attacks if attack.name == name)


def describe(subject: Subject, settings: Settings) -> EvaluationSpec:
    """Describe an evaluation, including the digests of its weights and data.

    Raises:
        ConfigError: A name is missing or used twice, a combination of settings is not allowed, or
            the radius is larger than any image could use.
        InputError: The model is not a module, the dataset is not an `ImageDataset`, `defenses` is
            not a dict, or an object in it is not a defense, is in training mode, or wraps another
            model.
        WeightsError: A state dict holds something other than tensors.
    """
    check_is_module(subject.model)
    if not isinstance(subject.dataset, ImageDataset):
        got = f"{type(subject.dataset).__module__}.{type(subject.dataset).__name__}"
        raise InputError(
            f"dataset must be a dent.data.ImageDataset, got {got}. For tensors, call "
            "dent.evaluate(model, images, labels)"
        )
    check_attributes(subject.dataset)
    subject = subject.sized(settings)
    names = [attack.name for attack in subject.attacks]
    for name in names:
        _check_name("attack", name)
        if names.count(name) > 1:
            raise ConfigError(f"two attacks are called {name!r}: give one of them another name")
    attacks = _attack_specs(subject)
    if settings.mix not in (None, 1):
        _check_mixed(attacks)
    if settings.randomness == "public":
        _check_public(attacks)
    dataset = subject.dataset
    if len(dataset):
        subject.threat.check_reach(dataset.batch([0])[0].shape[1:], warn=True)
    lineup = subject.lineup(settings)
    spec = EvaluationSpec(
        model=ModelSpec(
            name=subject.model_name or type(subject.model).__name__,
            kind=kind_of(subject.model),
            weights=weights_digest(subject.model),
        ),
        dataset=DatasetSpec(
            name=dataset.name,
            split=dataset.split,
            digest=dataset.digest,
            size=len(dataset),
            classes=tuple(dataset.classes),
        ),
        defenses=tuple(_defense_spec(name, defense) for name, defense in lineup.items()),
        attacks=attacks,
        threat=ThreatSpec(
            norm=subject.threat.norm, eps=subject.threat.written, bounds=subject.threat.bounds
        ),
        settings=settings,
    )
    for name, defense in lineup.items():
        if name != STATIC:
            _check_model_of(name, defense, subject.model)
    return scheduled(
        spec,
        plain_static=not isinstance(lineup.get(STATIC), DynamicDefense),
        no_steps=all(map(takes_no_steps, lineup.values())),
    )


def _attack_specs(subject: Subject) -> tuple[AttackSpec, ...]:
    attacks = tuple(attack_spec(attack, subject.threat) for attack in subject.attacks)
    for attack in attacks:
        problem = attack_contradiction(attack, subject.threat.norm)
        if problem is not None:
            raise ConfigError(problem)
    return attacks


def _check_mixed(attacks: Sequence[AttackSpec]) -> None:
    if any(attack.protocol == "published" for attack in attacks):
        raise ConfigError(
            "mix needs protocol='frozen': AutoAttack as published takes the batches apart"
        )
    if any(attack.settings.get("ask") == "standing" for attack in attacks):
        raise ConfigError("mix needs ask='whole': its natural members stay in their batch")


def _check_public(attacks: Sequence[AttackSpec]) -> None:
    if any(attack.protocol == "published" for attack in attacks):
        raise ConfigError(
            "randomness='public' needs protocol='frozen': AutoAttack as published takes the "
            "batches apart, and each batch is submitted under a seed of its own"
        )


@dataclass(frozen=True)
class Prepared:
    """An evaluation with its description and plan, ready to run in any process.

    Attributes:
        subject: The objects to evaluate.
        spec: Their description.
        plan: The batches.
    """

    subject: Subject
    spec: EvaluationSpec
    plan: Plan


def prepare(subject: Subject, settings: Settings) -> Prepared:
    """Describe an evaluation and fix its batches.

    Raises:
        ConfigError: Names with slashes are ambiguous.
        ConfigError, InputError, WeightsError: For the reasons in `describe` and `make_plan`.
    """
    subject = subject.sized(settings)
    spec, plan = describe(subject, settings), make_plan(settings, subject.dataset)
    _check_keys(spec, plan)
    return Prepared(subject, spec, plan)


def _check_keys(spec: EvaluationSpec, plan: Plan) -> None:
    """Check that no two units have the same key: slashes in names can make keys equal."""
    key, times = Counter(unit.key for unit in units(spec, plan)).most_common(1)[0]
    if times > 1:
        raise ConfigError(
            f"the names of defenses and attacks are ambiguous: {counted(times, 'unit')} would be "
            f"recorded as {key!r}. Rename a defense or an attack, without '/'"
        )


def threat_of(spec: ThreatSpec) -> ThreatModel:
    """Return the threat model that a record describes."""
    return ThreatModel(spec.norm, spec.eps, spec.bounds)


def _defense_spec(name: str, defense: Defense) -> DefenseSpec:
    described = describe_defense(defense)
    spec = DefenseSpec(
        name=name,
        kind=kind_of(defense),
        config={key: value for key, value in described.items() if key != "batch_dependent"},
        weights=weights_digest(defense) if isinstance(defense, nn.Module) else None,
        batch_dependent=is_batch_dependent(defense),
    )
    problem = contradiction(spec)
    if problem is not None:
        raise ConfigError(problem)
    return spec


def _check_name(what: str, name: object) -> None:
    if not isinstance(name, str) or not name.strip():
        raise ConfigError(f"the name of a {what} must be a text that is not empty, got {name!r}")


def _check_defense(name: str, defense: Defense) -> None:
    expected = (
        f"the defense {name!r} must be a torch.nn.Module or have adapt, predict and "
        "batch_dependent, got"
    )
    if isinstance(defense, type):  # a class has these methods, too
        raise InputError(f"{expected} the class {defense.__name__}: pass {defense.__name__}(model)")
    if isinstance(defense, str):
        raise InputError(
            f"{expected} the name {defense!r}: dent.defenses.make({defense!r}, model) makes it"
        )
    if not isinstance(defense, DynamicDefense | nn.Module):
        raise InputError(f"{expected} {type(defense).__name__}")
    if not isinstance(defense, nn.Module):
        return
    forwarded = [
        method
        for method in ("adapt", "predict")
        if hasattr(defense, method) and not _has(defense, method)
    ]
    if forwarded:
        raise InputError(
            f"the defense {name!r} ({type(defense).__name__}) answers {' and '.join(forwarded)} by "
            "another object, through __getattr__, so that its own forward would be left out: "
            "define adapt and predict on it, or wrap the model inside of the defense"
        )
    if not isinstance(defense, DynamicDefense):
        is_batch_dependent(defense)  # raises for a plain module in training mode


def _check_model_of(name: str, defense: Defense, model: nn.Module) -> None:
    """Check that a defense that tells its static model wraps the model under evaluation.

    A `Dent` without steps is left out, because a module that is a defense itself is run as one.
    """
    if getattr(defense, "config", None) == UNCHANGING:
        return
    unwrap = getattr(defense, "unwrap", None)
    wrapped = unwrap() if callable(unwrap) else None
    if isinstance(wrapped, nn.Module) and not have_same_weights(wrapped, model):
        raise InputError(
            f"the defense {name!r} wraps another model than the one under evaluation: their "
            "weights differ, so the difference would not be the defense's. Wrap this model, after "
            f"its weights are final: {type(defense).__name__}(model)"
        )


def _has(defense: nn.Module, part: str) -> bool:
    """Return whether a module has an attribute itself, not through its `__getattr__`."""
    if part in defense._modules:
        return True
    try:
        inspect.getattr_static(defense, part)
    except AttributeError:
        return False
    return True
