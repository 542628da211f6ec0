"""The names of classes in records stay the same when the code is moved."""

import importlib
import json
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import dent
from dent.attacks import PGD, Attack
from dent.defenses import describe
from dent.defenses.base import ReferenceDefense
from dent.defenses.dent import Dent
from dent.kinds import KINDS, Kind, class_of, kind_of, path_of, recorded_kind
from dent.models.residual import ResNet

ROOT = Path(__file__).parents[1]
WRITTEN = [
    *(ROOT / "tests/evaluation/golden").rglob("run.json"),
    *(ROOT / "tests/evaluation/golden").rglob("result.json"),
    *(ROOT / "docs/paper").rglob("run.json"),
    *(ROOT / "docs/evaluation/results").glob("*.json"),
]
# Written by hand: every name that an existing record may contain.
FROZEN = {
    "dent.attacks.adaptive.collateral.Collateral",
    "dent.attacks.adaptive.model_space.ModelSpace",
    "dent.attacks.adaptive.rays.RayS",
    "dent.attacks.adaptive.surrogates.Surrogates",
    "dent.attacks.adaptive.through.AdaptiveAPGD",
    "dent.attacks.autoattack.AutoAttack",
    "dent.attacks.foreign.Foreign",
    "dent.attacks.pgd.PGD",
    "dent.defense.Dent",
    "dent.defenses.et3.ET3",
    "dent.defenses.mean_sparse.MeanSparse",
    "dent.defenses.med_bn.MedBN",
    "dent.defenses.purifier.Purifier",
    "dent.models.autoattack_resnet18.ResNet18",
    "dent.models.normalize.Normalize",
    "dent.models.residual.ResNet",
    "dent.outputs.Logits",
    "dent.reference.anti_adversary.AntiAdversary",
    "dent.reference.hedge.Hedge",
    "dent.reference.statistics_prior.StatisticsPrior",
    "dent.reference.tent_online.TentOnline",
}


class Stranger:
    """A class that a user defined."""


def described(value: Any) -> Iterator[tuple[str, str]]:
    """Yield every `kind`, and every `name` that is a path, in a record."""
    if isinstance(value, list):
        for item in value:
            yield from described(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if isinstance(item, str) and (key == "kind" or (key == "name" and ":" in item)):
                yield key, item
            yield from described(item)


def test_kinds_are_unique_and_none_was_removed() -> None:
    recorded = [kind.recorded for kind in KINDS]
    assert set(recorded) >= FROZEN
    assert len(recorded) == len(set(recorded)) == len({kind.name for kind in KINDS})


def test_every_kind_in_the_records_of_the_repository_is_registered() -> None:
    assert len(WRITTEN) > 130
    found = {pair for path in WRITTEN for pair in described(json.loads(path.read_text())["spec"])}
    kinds = {text for key, text in found if key == "kind" and text.startswith("dent.")}
    paths = {text for key, text in found if key == "name" and text.startswith("dent.")}
    assert len(kinds) >= 7
    assert paths
    assert kinds <= {kind.recorded for kind in KINDS}
    assert paths <= {":".join(kind.recorded.rsplit(".", 1)) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_kind_names_a_class_that_is_recorded_under_that_name(kind: Kind) -> None:
    cls = pkgutil.resolve_name(kind.where)
    assert kind.where == f"{cls.__module__}:{cls.__qualname__}"
    thing = cls.__new__(cls)
    assert class_of(kind.recorded) is cls
    assert kind_of(thing) == recorded_kind(kind.name) == kind.recorded
    assert path_of(thing) == ":".join(kind.recorded.rsplit(".", 1))


@pytest.fixture
def renamed() -> Iterator[None]:
    """Change some classes as if another version had moved and renamed them."""
    before = {cls: (cls.__module__, cls.__qualname__) for cls in (PGD, Dent, ResNet)}
    for cls in before:
        cls.__module__, cls.__qualname__ = "dent.elsewhere", "Renamed"
    yield
    for cls, (module, name) in before.items():
        cls.__module__, cls.__qualname__ = module, name


@pytest.mark.usefixtures("renamed")
def test_a_moved_and_renamed_class_keeps_its_recorded_name() -> None:
    assert kind_of(PGD()) == "dent.attacks.pgd.PGD"
    assert kind_of(Dent.__new__(Dent)) == "dent.defense.Dent"
    assert describe(ResNet(8, 1))["name"] == "dent.models.residual:ResNet"


def test_a_class_of_a_user_is_recorded_by_its_path() -> None:
    assert kind_of(Stranger()) == "tests.test_kinds.Stranger"
    assert path_of(Stranger()) == "tests.test_kinds:Stranger"

    class Nested(PGD):  # type: ignore[misc]
        """A subclass of a registered class, which is not registered itself."""

    assert kind_of(Nested()).startswith("tests.test_kinds.test_a_class")
    assert path_of(Nested()).startswith("tests.test_kinds:test_a_class")


@pytest.mark.parametrize("base", [Attack, ReferenceDefense])
def test_every_attack_and_defense_of_the_package_is_registered(base: type) -> None:
    for module in pkgutil.walk_packages(dent.__path__, "dent."):
        if module.name.startswith(("dent.attacks", "dent.defenses")):
            importlib.import_module(module.name)
    ours = {cls for cls in subclasses(base) if cls.__module__.startswith("dent.")}
    concrete = {cls for cls in ours if not cls.__abstractmethods__}
    assert len(concrete) >= 4
    assert concrete <= {kind.loaded for kind in KINDS}


def subclasses(base: Any) -> Iterator[Any]:
    """Yield all direct and indirect subclasses."""
    for cls in base.__subclasses__():
        yield cls
        yield from subclasses(cls)
