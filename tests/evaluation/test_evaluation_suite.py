"""The dynamic suite: its attacks, budgets and page, and how a specification is recognized."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import pytest
import torch
from torch import nn

from dent import data, models
from dent.attacks import Attack, Outcome, Querier, make
from dent.errors import ConfigError, UnknownNameError
from dent.evaluation import Settings, Subject, describe, evaluate, suite
from dent.evaluation.attack_kinds import has_exact_attack, kind_of_attack
from dent.evaluation.records.spec import Budget
from dent.evaluation.subject import SURROGATES
from dent.evaluation.suite_attacks import (
    BUDGETS,
    DYNAMIC,
    SUITES,
    VERSION,
    VERSIONS,
    SuiteAttack,
    name_of,
)
from dent.evaluation.suites import budget_of, coverage_of, named_suite, ran_as, suite_attacks
from dent.threat import Norm, ThreatModel
from tests.evaluation.subjects import SIDE, batch_of, make_dataset, make_subject
from tests.on_device import DEVICE

PAGE = Path(__file__).parents[2] / "docs" / "evaluation" / "suite.md"


def row(attack: SuiteAttack) -> str:
    """Return the row of an attack in the table of the page."""

    def listed(settings: dict[str, Any]) -> str:
        return ", ".join(f"{key} {value}" for key, value in settings.items())

    fixed = listed({key: str(value).lower() for key, value in attack.fixed.items()})
    begins = BUDGETS.index(attack.begins)
    made = f" = {attack.attack}" if attack.attack != attack.name else ""
    made += ", on mixed batches" if attack.on_clean else ""
    cells = [
        listed({key: values[at] for key, values in attack.counts.items()}) if at >= begins else ""
        for at in range(len(BUDGETS))
    ]
    name = f"`{attack.name}`{made}" + (f" ({fixed})" if fixed else "")
    return f"| {' | '.join([name, *cells])} |".replace("|  |", "| |").replace("|  |", "| |")


def test_table_in_the_suite_page_matches_the_suite() -> None:
    _, _, after = PAGE.read_text().partition("| attack | small | standard | full |\n")
    written = after.partition("\n\n")[0].splitlines()[1:]
    rows = [row(attack) for attack in DYNAMIC]
    assert written == rows, "\n".join(rows)


def test_counts_never_decrease_with_the_budget_and_only_full_adds_an_attack() -> None:
    for attack in DYNAMIC:
        for values in attack.counts.values():
            assert list(values) == sorted(values), attack.name
    kinds = [{each.name for each in suite_attacks("dynamic", budget)} for budget in BUDGETS]
    assert kinds[0] == kinds[1]
    assert kinds[2] - kinds[1] == {"gmsa-min-unrolled"}


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_run_of_the_suite_is_identified_from_its_specification(budget: Budget, norm: Any) -> None:
    subject = make_subject(attacks=suite("dynamic", budget))
    subject = replace(subject, threat=ThreatModel(norm, "8/255"))
    spec = describe(subject, Settings(n=8, batch_size=8))
    assert (named_suite(spec), budget_of(spec)) == (("dynamic", budget), budget)
    assert has_exact_attack(spec)
    assert list(ran_as(spec, budget) or ()) == [attack.name for attack in subject.attacks]
    other_order = spec.model_copy(update={"attacks": spec.attacks[::-1]})
    assert (named_suite(other_order), budget_of(other_order)) == (("dynamic", budget), budget)


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("version", [version for version in VERSIONS if version != VERSION])
def test_run_of_an_older_suite_version_is_identified(version: int, budget: Budget) -> None:
    older = suite(name_of(version), budget)
    spec = describe(make_subject(attacks=older), Settings(n=8, batch_size=8))
    found = coverage_of(spec)
    assert found is not None
    assert (found.version, found.budget) == (version, budget)
    assert named_suite(spec) == (f"dynamic-{version}", budget)
    newest = describe(make_subject(attacks=suite("dynamic", budget)), Settings(n=8, batch_size=8))
    assert coverage_of(newest) == replace(found, version=VERSION, ran_as=ran_as(newest, budget))


def test_gradient_with_smooth_signs_does_not_count_as_exact() -> None:
    for settings, exact in (
        ({}, True),
        ({"losses_at": "all"}, True),
        ({"smooth_signs": 1.0}, False),
    ):
        attack = make("adaptive-unrolled", **settings)
        spec = describe(make_subject(attacks=[attack]), Settings(n=8, batch_size=8))
        assert has_exact_attack(spec) == exact


def test_each_attack_is_classified_by_what_it_follows() -> None:
    spec = describe(make_subject(attacks=suite("dynamic", "small")), Settings(n=8, batch_size=8))
    kinds = {each.name: kind_of_attack(each) for each in spec.attacks}
    others = {name: kind for name, kind in kinds.items() if kind != "white-box"}
    assert others == {
        "adaptive-transfer": "transfer",
        "zero-update": "transfer",
        "surrogates": "transfer",
        "square": "black-box",
        "rays": "black-box",
        "adaptive-fewer-steps": "other",  # of another defense
        "adaptive-unrolled-warm": "other",  # starts from the images of a transfer attack
    }


ALL_LOSSES = "ce+margin+dlr"


@final
@dataclass(frozen=True)
class Impostor(Attack):
    """Has the name and settings of RayS, and does nothing."""

    @property
    def default_name(self) -> str:
        return "rays"

    def run(self, target: Querier, threat: ThreatModel, seed: int) -> Outcome:
        del threat, seed
        return Outcome(target.natural, torch.zeros_like(target.labels, dtype=torch.bool))

    def settings(self, norm: Norm = "linf") -> dict[str, Any]:
        return make("rays", iterations=100).settings(norm)


def test_missing_or_weaker_attacks_are_no_suite_and_stronger_attacks_are() -> None:
    whole = suite("dynamic", "small")

    def found(attacks: Any) -> tuple[Budget | None, Any]:
        spec = describe(make_subject(attacks=attacks), Settings(n=8, batch_size=8))
        known = coverage_of(spec)
        return known.budget if known and known.version == VERSION else None, named_suite(spec)

    for at, attack in enumerate(whole):
        less = [*whole[:at], *whole[at + 1 :]]
        assert found(less) == (None, None), attack.name
    others = [attack for attack in whole if attack.name != "rays"]
    short, long = make("rays", iterations=99), make("rays", iterations=101)
    assert found([*others, short]) == (None, None)
    assert found([*others, long]) == ("small", None)
    # A custom attack covers no attack of the suite, even with the name and settings of one.
    assert found([*others, Impostor(name="mine")]) == (None, None)
    with pytest.raises(ConfigError, match="give it a name that says what it is"):
        found([*others, Impostor()])
    mine = describe(make_subject(attacks=[*others, Impostor(name="mine")]), Settings(n=8))
    renamed = tuple(
        attack.model_copy(update={"name": "rays" if attack.name == "mine" else attack.name})
        for attack in mine.attacks
    )
    assert coverage_of(mine.model_copy(update={"attacks": renamed})) is None
    others = [attack for attack in whole if attack.name != "adaptive-bpda"]
    less, more = (make("adaptive-bpda", iterations=20, losses=each) for each in ("ce", ALL_LOSSES))
    assert found([*others, less]) == (None, None)
    assert found([*others, more]) == ("small", None)
    # AutoAttack as one attack covers its parts only with the frozen protocol.
    parts = ("apgd-ce", "apgd-t", "fab-t", "square")
    others = [attack for attack in whole if attack.name not in parts]
    assert found([*others, make("standard")]) == ("small", None)
    assert found([*others, make("standard", protocol="published")]) == (None, None)
    assert found([make("standard")]) == (None, None)


def test_suite_for_mixed_batches_requires_the_collateral_attack() -> None:
    mixed = suite("dynamic", "small", mixed=True)
    alone = suite("dynamic", "small")
    assert {each.name for each in mixed} - {each.name for each in alone} == {"collateral"}
    half = Settings(n=8, batch_size=8, mix=0.5)
    spec = describe(make_subject(attacks=mixed), half)
    assert (budget_of(spec), named_suite(spec)) == ("small", ("dynamic", "small"))
    assert budget_of(describe(make_subject(attacks=alone), half)) is None
    whole = describe(make_subject(attacks=mixed), Settings(n=8, batch_size=8))
    assert (budget_of(whole), named_suite(whole)) == ("small", None)  # more than the suite


def test_unknown_suite_and_budget_names_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="dynamic"):
        suite("static")  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="small, standard, full"):
        suite("dynamic", "tiny")  # type: ignore[arg-type]


def test_suite_runs_on_a_model_with_two_classes() -> None:
    draws = torch.Generator().manual_seed(0)
    layer = nn.Linear(3 * SIDE * SIDE, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=draws))
        layer.bias.copy_(-layer.weight.sum(dim=1) / 2)
    model = nn.Sequential(nn.Flatten(), layer).eval().to(DEVICE)
    data = make_dataset(6)
    with torch.no_grad():
        labels = model(batch_of(data, range(6))[0]).argmax(dim=1).cpu().numpy()
    few = replace(data, classes=("a", "b"), labels=labels)
    subject = Subject(model, few, {}, suite("dynamic", "small"), ThreatModel("linf", "8/255"))
    result = evaluate(subject, Settings(batch_size=6))
    assert result.status == "complete"
    assert result.defenses["static"].natural.share == 1
    assert all(found.batches for found in result.defenses["static"].attacks)


def test_every_suite_version_has_its_own_name() -> None:
    names = [name_of(version) for version in VERSIONS]
    assert sorted(names) == sorted(SUITES)
    assert name_of(max(VERSIONS)) == "dynamic"
    for name in SUITES:
        assert {each.name for each in suite_attacks(name)}


def test_surrogates_are_the_three_small_bundled_models_except_the_evaluated_one() -> None:
    """A model that the package bundles later must not change the results of the suite."""
    dataset = data.load("cifar10-sample")
    for name in ("resnet-14-2-linf", "resnet18-nominal"):
        model = models.load(name)
        subject = Subject(model, dataset, {}, [], ThreatModel("linf", "8/255"))
        assert subject.surrogates().keys() == SURROGATES - {name}
