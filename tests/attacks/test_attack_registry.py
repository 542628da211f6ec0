import json

import pytest

from dent.attacks import Attack, AutoAttack, make, make_from, names
from dent.attacks.adaptive import ADAPTIVE
from dent.attacks.autoattack.parts import Part
from dent.attacks.registry import settings_of
from dent.errors import ConfigError, UnknownNameError
from tests.attacks.attack_toys import SETS, SINGLES


def test_attack_names_are_sorted_and_all_can_be_made() -> None:
    assert names() == tuple(sorted(names()))
    assert set(names()) == {"pgd", "pgd-imagenet", *SINGLES, *SETS, *ADAPTIVE}
    for name in names():
        attack = make(name)
        assert attack.name == name
        assert json.loads(json.dumps(attack.settings())) == attack.settings()


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("apgd", "apgd-"),
        ("APGD-CE", "'apgd-ce'"),
        ("zzzz", "'zzzz'. Expected one of "),
        ("rand", "adaptive-stop-gradient:submissions=20"),
    ],
)
def test_unknown_attack_names_are_refused_with_a_suggestion(name: str, hint: str) -> None:
    with pytest.raises(UnknownNameError, match=hint):
        make(name)


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("autoattack", "standard"),
        ("AutoAttack", "standard"),
        ("auto-attack", "standard"),
        ("aa", "standard"),
        ("AA+", "plus"),
    ],
)
def test_aliases_of_autoattack_make_the_attacks_standard_and_plus(written: str, name: str) -> None:
    """Attacks made by an alias have the same name, so that their records agree."""
    for attack in (make(written), make_from(written)):
        assert attack.name == name
        assert attack.settings() == make(name).settings()
    assert make_from(f" {written} : iterations=3").name == f"{name}:iterations=3"
    assert settings_of(written) == settings_of(name)


def test_unknown_settings_are_refused_with_a_suggestion() -> None:
    with pytest.raises(ConfigError, match=r"no setting 'iteration'\. Did you mean 'iterations'"):
        make("pgd", iteration=3)
    with pytest.raises(ConfigError, match="square has no setting 'step'"):
        make("square", step=0.1)


@pytest.mark.parametrize("name", names())
def test_every_attack_takes_a_name_for_results(name: str) -> None:
    attack = make(name, name="mine")
    assert attack.name == "mine"
    assert attack.registered == make(name).registered
    assert attack.settings() == make(name).settings()
    with pytest.raises(ConfigError, match="leave out name="):
        make_from(f"{name}:name=mine")


def test_setting_of_none_keeps_the_default() -> None:
    assert make("apgd-ce", iterations=None, rho=None).settings() == make("apgd-ce").settings()
    assert make("pgd", iterations=None).settings() == make("pgd").settings()


def test_ask_is_recorded_only_if_not_default_and_kept_in_a_longer_attack() -> None:
    assert "ask" not in make("standard").settings()
    standing = make_from("apgd-ce:iterations=5,ask=standing")
    longer = standing.longer()
    assert longer is not None
    assert standing.settings()["ask"] == longer.settings()["ask"] == "standing"
    assert longer.settings()["iterations"] == 10
    assert longer.name == standing.name


def test_square_has_a_separate_setting_of_iterations_only_in_sets() -> None:
    assert [part.iterations for part in parts(make("square", iterations=7))] == [7]
    whole = parts(make("standard", iterations=7, square_iterations=9))
    assert [part.iterations for part in whole] == [7, 7, 7, 9]


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
        ("square", {"ask": "nobody"}),
        ("standard", {"ask": "standing", "protocol": "published"}),
    ],
)
def test_invalid_settings_of_autoattack_are_refused(name: str, wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        make(name, **wrong)


def test_attack_with_settings_can_be_given_as_one_string() -> None:
    paper = make_from(" pgd: iterations=30, step=0.1,restarts=5,random_start=true ")
    assert paper.settings() == make("pgd-imagenet").settings()
    assert paper.name == "pgd:iterations=30,step=0.1,restarts=5,random_start=true"
    assert make_from("apgd-t", iterations=7).settings() == make("apgd-t", iterations=7).settings()
    # Settings in the string override those for all attacks.
    own = make_from("apgd-t:iterations=3,targets=2", iterations=7, protocol="published")
    assert (
        own.settings() == make("apgd-t", iterations=3, targets=2, protocol="published").settings()
    )
    assert make_from("square:protocol=published").settings()["protocol"] == "published"
    assert [make_from(name).name for name in names()] == list(names())


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("pgd:", "NAME:SETTING=VALUE"),
        ("pgd:iterations", "NAME:SETTING=VALUE"),
        ("pgd:iterations=", "NAME:SETTING=VALUE"),
        ("pgd:iterations=3,iterations=4", "iterations is set twice"),
        ("pgd:iteration=3", "Did you mean 'iterations'"),
        ("pgd:iterations=many", "whole number, at least 1, got 'many'"),
        ("pgd:iterations=2.5", "whole number, at least 1, got 2.5"),
        ("pgd:step=fast", "step must be a number"),
        ("pgd:share=true", "share must be in"),
        ("pgd:random_start=no", "random_start must be true or false, got 'no'"),
        ("apgd-ce:iterations=true", "iterations must be a whole number"),
        ("apgd-ce:rho=big", "rho must be in"),
        ("apgd-ce:protocol=published,batch_size=x", "batch_size is for"),
    ],
)
def test_invalid_attack_strings_are_refused(text: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        make_from(text)


def test_published_protocol_is_refused_for_attacks_other_than_autoattack() -> None:
    with pytest.raises(ConfigError, match="AutoAttack's own; pgd has none"):
        make_from("pgd", protocol="published")
    with pytest.raises(UnknownNameError, match="Did you mean 'pgd'"):
        make_from("pdg:iterations=3")


def test_sized_sets_the_batch_size_only_of_published_and_if_unset() -> None:
    published = make_from("apgd-ce:restarts=2", protocol="published")
    told = published.sized(64)
    assert (
        told.settings()
        == make("apgd-ce", restarts=2, protocol="published", batch_size=64).settings()
    )
    assert told.name == published.name
    assert told.sized(8) is told  # a batch size that is set stays
    frozen = make("apgd-ce")
    assert frozen.sized(64) is frozen


def test_settings_of_standard_match_the_parts_that_it_runs() -> None:
    attack = make("standard", rho=0.5)
    assert isinstance(attack, AutoAttack)
    assert attack.versions["pyautoattack"]
    found = attack.parts("l1")
    assert [part.name for part in found] == ["apgd-ce", "apgd-t", "fab-t", "square"]
    # AutoAttack in l1: five restarts over three radii, and five targets.
    assert found[0] == Part("apgd-ce", 100, restarts=5, rho=0.5, large_radii=True)
    assert found[1].targets == 5
    assert attack.settings("l1") == {
        "protocol": "frozen",
        "batch_size": None,
        "iterations": 100,
        "restarts": None,
        "targets": None,  # the parts differ: five for apgd-t, nine for fab-t
        "rho": 0.5,
        "square_iterations": 5000,
    }
    assert attack.settings("linf")["targets"] == 9


def parts(attack: Attack) -> tuple[Part, ...]:
    """Return the parts of an attack in linf."""
    assert isinstance(attack, AutoAttack)
    return attack.parts("linf")
