import json

import pytest

from dent.attacks import AutoAttack, make, names
from dent.attacks.adaptive import ADAPTIVE
from dent.errors import ConfigError, UnknownNameError
from tests.attacks.attack_toys import SETS, SINGLES


def test_names_are_sorted_and_all_can_be_made() -> None:
    assert names() == tuple(sorted(names()))
    assert set(names()) == {"pgd", "pgd-imagenet", *SINGLES, *SETS, *ADAPTIVE}
    for name in names():
        attack = make(name)
        assert attack.name == name
        assert json.loads(json.dumps(attack.settings())) == attack.settings()


@pytest.mark.parametrize(
    ("name", "hint"), [("apgd", "apgd-"), ("APGD-CE", "'apgd-ce'"), ("autoattack", "there are")]
)
def test_unknown_names_are_answered_with_a_suggestion(name: str, hint: str) -> None:
    with pytest.raises(UnknownNameError, match=hint):
        make(name)


def test_unknown_settings_are_answered_with_a_suggestion() -> None:
    with pytest.raises(ConfigError, match="no setting 'iteration', did you mean 'iterations'"):
        make("pgd", iteration=3)
    with pytest.raises(ConfigError, match="square has no setting 'step'"):
        make("square", step=0.1)


def test_none_leaves_the_default() -> None:
    assert make("apgd-ce", iterations=None, rho=None).settings() == make("apgd-ce").settings()
    assert make("pgd", iterations=None).settings() == make("pgd").settings()


def test_single_attacks_take_iterations_sets_tell_squares_apart() -> None:
    assert make("square", iterations=7).settings()["parts"][0]["iterations"] == 7
    parts = make("standard", iterations=7, square_iterations=9).settings()["parts"]
    assert [part["iterations"] for part in parts] == [7, 7, 7, 9]


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("apgd-ce", {"iterations": 0}),
        ("apgd-ce", {"restarts": 1.5}),
        ("apgd-ce", {"targets": 2}),
        ("apgd-ce", {"square_iterations": 2}),
        ("apgd-t", {"targets": 0}),
        ("fab", {"rho": 0.5}),
        ("square", {"rho": 0.5}),
        ("standard", {"restarts": 2}),
        ("standard", {"rho": 1.5}),
        ("standard", {"protocol": "thawed"}),
        ("standard", {"batch_size": 8}),
        ("standard", {"batch_size": 0, "protocol": "published"}),
        ("fab-t", {"restarts": 2, "protocol": "published"}),
    ],
)
def test_settings_without_meaning_are_refused(name: str, wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        make(name, **wrong)


def test_settings_name_everything_that_runs() -> None:
    attack = make("standard", rho=0.5)
    assert isinstance(attack, AutoAttack)
    found = attack.settings("l1")
    assert found["protocol"] == "frozen"
    assert found["pyautoattack"]
    assert [part["name"] for part in found["parts"]] == ["apgd-ce", "apgd-t", "fab-t", "square"]
    # AutoAttack in l1: five restarts over three radii, and five targets.
    assert found["parts"][0] == {
        "name": "apgd-ce",
        "iterations": 100,
        "restarts": 5,
        "rho": 0.5,
        "large_radii": True,
    }
    assert found["parts"][1]["targets"] == 5
    assert "rho" not in found["parts"][3]
