"""Tests of attacks as values: immutable, compared by fields, and restored from JSON."""

import json
import pickle
from dataclasses import FrozenInstanceError, dataclass, fields, replace
from typing import Any, cast

import pytest

from dent.attacks import PGD, Attack, AutoAttack, Outcome, Querier, counting, make, names
from dent.attacks.adaptive import AdaptiveAPGD
from dent.attacks.counting import count_passes
from dent.errors import ConfigError
from dent.threat import NORMS, Norm, ThreatModel
from tests.attacks.attack_toys import SMALL


class Looking(Attack):
    """Queries the natural images once."""

    def run(self, target: Querier, threat: ThreatModel, seed: int) -> Outcome:
        del threat, seed
        return Outcome(target.natural, target(target.natural).argmax(dim=1) != target.labels)


class Stubborn(Looking):
    """Queries the natural images until one is fooled."""

    def run(self, target: Querier, threat: ThreatModel, seed: int) -> Outcome:
        found = super().run(target, threat, seed)
        while not found.fooled.any():
            found = super().run(target, threat, seed)
        return found


class Broken(Looking):
    """Raises an error in every run."""

    def run(self, target: Querier, threat: ThreatModel, seed: int) -> Outcome:
        raise ArithmeticError("too small")


class Hiding(Looking):
    """Has an attribute that is not a field, so that no record has it."""

    def __init__(self, strength: float) -> None:
        super().__init__()
        self.strength = strength


@dataclass(frozen=True)
class Named(Looking):
    """Has one field."""

    strength: float = 1.0


@pytest.mark.parametrize("name", names())
def test_attack_round_trips_through_json_and_pickle(name: str) -> None:
    for attack in (make(name), make(name, **SMALL[name])):
        again = type(attack).from_dict(json.loads(json.dumps(attack.to_dict())))
        assert again == attack == pickle.loads(pickle.dumps(attack))  # noqa: S301
        assert hash(again) == hash(attack)
    assert make(name, **SMALL[name]) != make(name)
    assert replace(make(name), name="other") != make(name)


@pytest.mark.parametrize("name", names())
def test_fields_of_an_attack_cannot_be_assigned(name: str) -> None:
    attack = make(name)
    for field in fields(attack):
        with pytest.raises(FrozenInstanceError):
            setattr(attack, field.name, 1)


def test_from_dict_refuses_unknown_fields_with_a_suggestion_and_bad_values() -> None:
    with pytest.raises(ConfigError, match=r"no field 'iteration'\. Did you mean 'iterations'"):
        PGD.from_dict({"iteration": 3})
    with pytest.raises(ConfigError, match="iterations must be a whole number"):
        PGD.from_dict({"iterations": 0})


def test_replace_checks_the_fields_again_and_keeps_the_name() -> None:
    attack = make("adaptive-bpda", iterations=3)
    assert isinstance(attack, AdaptiveAPGD)
    assert replace(attack, losses=cast("Any", "ce+margin")) == attack
    with pytest.raises(ConfigError, match="targets must be a whole number, at least 0"):
        replace(attack, targets=-1)
    assert replace(attack, name="mine", restarts=2).longer() == make_mine()


def make_mine() -> Attack:
    """Return `adaptive-bpda` with all changes of the test above."""
    return AdaptiveAPGD("bpda", iterations=6, restarts=2, name="mine")


def test_autoattack_accepts_its_attack_as_name_and_refuses_unknown_ones() -> None:
    assert AutoAttack(name="apgd-ce") == AutoAttack("apgd-ce")  # type: ignore[call-arg]
    assert AutoAttack("apgd-ce", name="mine").attack == "apgd-ce"
    for wrong in ({}, {"attack": "apgd"}, {"name": "mine"}):
        with pytest.raises(ConfigError, match="attack must be one of 'apgd-ce'"):
            AutoAttack(**cast("Any", wrong))


def test_attribute_that_is_not_a_field_is_refused() -> None:
    with pytest.raises(ConfigError, match="Hiding keeps 'strength', which is not a field"):
        Hiding(2.0).settings()
    assert Named(2.0).settings() == {"strength": 2.0}
    assert (Named().name, Named().registered) == ("named", None)


@pytest.mark.parametrize(
    ("more", "less", "covered"),
    [
        ({"iterations": 9}, {"iterations": 8}, True),
        ({"iterations": 8}, {"iterations": 9}, False),
        ({"losses": "ce+margin"}, {"losses": "ce"}, True),
        ({"losses": "ce"}, {"losses": "ce+margin"}, False),
        ({"unmask": True}, {}, True),
        ({}, {"unmask": True}, False),
        ({"rho": 0.5}, {}, False),
        ({"warm": True}, {}, False),
    ],
)
def test_attack_covers_another_only_if_it_tries_as_much(
    more: Any, less: Any, covered: bool
) -> None:
    mine, other = make("adaptive-bpda", **more), make("adaptive-bpda", **less)
    assert replace(mine, name="mine").covers(other) is covered
    assert not make("adaptive-unrolled", **more).covers(other)


def test_attack_set_covers_its_parts_but_no_other_protocol() -> None:
    whole = make("standard", iterations=20)
    assert whole.covers(make("apgd-ce", iterations=20))
    assert not whole.covers(make("apgd-ce", iterations=21))
    assert not whole.covers(make("apgd-dlr", iterations=20))
    assert not whole.covers(make("apgd-ce", iterations=20, protocol="published"))
    assert not whole.covers(make("pgd"))
    # In l1, AutoAttack has other restarts and targets.
    assert whole.covers(make("apgd-ce", iterations=20, restarts=5), "l1")
    assert not whole.covers(make("apgd-ce", iterations=20, restarts=5), "l2")


@pytest.mark.parametrize("name", ["pgd", "apgd-t", "fab", "square", "fpa", "adaptive-unrolled"])
@pytest.mark.parametrize("norm", NORMS)
def test_passes_counted_by_a_run_equal_the_passes_that_the_attack_declares(
    name: str, norm: Norm
) -> None:
    attack = make(name, **SMALL[name])
    assert count_passes(attack, 5, norm) == attack.queries(5, norm)


def test_attack_without_declared_passes_is_run_to_count_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert Looking().queries(4) == (1, 0)
    with pytest.raises(ConfigError, match=r"'broken' .* \(ArithmeticError: too small\).* queries"):
        Broken().queries(4)
    monkeypatch.setattr(counting, "_MOST", 20)
    with pytest.raises(ConfigError, match="more than 20 queries if nothing is fooled"):
        Stubborn().queries(4)
