"""The dynamic suite as data: its budgets, its page, and how a run is known to have been one."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import pytest
import torch
from torch import nn

from dent.attacks import Attack, Outcome, Querier, make
from dent.errors import UnknownNameError
from dent.evaluation import Settings, Subject, describe, evaluate, suite
from dent.evaluation.suites import (
    BUDGETS,
    DYNAMIC,
    SUITES,
    VERSION,
    VERSIONS,
    Budget,
    Member,
    budget_of,
    coverage_of,
    exactly,
    looks_through,
    members,
    name_of,
    ran_as,
    stand_of,
)
from dent.threat import Norm, ThreatModel
from tests.evaluation.subjects import SIDE, batch_of, make_dataset, make_subject
from tests.on_device import DEVICE

PAGE = Path(__file__).parents[2] / "docs" / "evaluation" / "suite.md"


def row(member: Member) -> str:
    """A member's row in the table of the page."""

    def listed(settings: dict[str, Any]) -> str:
        return ", ".join(f"{key} {value}" for key, value in settings.items())

    fixed = listed({key: str(value).lower() for key, value in member.fixed.items()})
    begins = BUDGETS.index(member.begins)
    made = f" = {member.attack}" if member.attack != member.name else ""
    made += ", on mixed batches" if member.mixed else ""
    cells = [
        listed({key: values[at] for key, values in member.counts.items()}) if at >= begins else ""
        for at in range(len(BUDGETS))
    ]
    name = f"`{member.name}`{made}" + (f" ({fixed})" if fixed else "")
    return f"| {' | '.join([name, *cells])} |".replace("|  |", "| |").replace("|  |", "| |")


def test_the_table_of_the_page_is_the_data() -> None:
    _, _, after = PAGE.read_text().partition("| attack | small | standard | full |\n")
    written = after.partition("\n\n")[0].splitlines()[1:]
    rows = [row(member) for member in DYNAMIC]
    assert written == rows, "\n".join(rows)


def test_a_larger_budget_is_at_least_the_smaller_one_in_everything() -> None:
    for member in DYNAMIC:
        for values in member.counts.values():
            assert list(values) == sorted(values), member.name
    kinds = [{member.name for member in members("dynamic", budget)} for budget in BUDGETS]
    assert kinds[0] == kinds[1]
    assert kinds[2] - kinds[1] == {"gmsa-min-unrolled"}


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_run_of_the_suite_is_known_by_its_records(budget: Budget, norm: Any) -> None:
    subject = make_subject(attacks=suite("dynamic", budget))
    subject = replace(subject, threat=ThreatModel(norm, "8/255"))
    spec = describe(subject, Settings(n=8, batch_size=8))
    assert (exactly(spec), budget_of(spec)) == (("dynamic", budget), budget)
    assert looks_through(spec)
    assert list(ran_as(spec, budget) or ()) == [attack.name for attack in subject.attacks]
    other_order = spec.model_copy(update={"attacks": spec.attacks[::-1]})
    assert (exactly(other_order), budget_of(other_order)) == (("dynamic", budget), budget)


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("version", [version for version in VERSIONS if version != VERSION])
def test_a_run_of_an_older_suite_is_known_as_one(version: int, budget: Budget) -> None:
    older = suite(name_of(version), budget)
    spec = describe(make_subject(attacks=older), Settings(n=8, batch_size=8))
    found = coverage_of(spec)
    assert found is not None
    assert (found.version, found.budget) == (version, budget)
    assert exactly(spec) == (f"dynamic-{version}", budget)
    newest = describe(make_subject(attacks=suite("dynamic", budget)), Settings(n=8, batch_size=8))
    assert coverage_of(newest) == replace(found, version=VERSION, ran_as=ran_as(newest, budget))


def test_a_gradient_through_smooth_signs_is_not_exact() -> None:
    for settings, exact in (
        ({}, True),
        ({"losses_at": "all"}, True),
        ({"smooth_signs": 1.0}, False),
    ):
        attack = make("adaptive-unrolled", **settings)
        spec = describe(make_subject(attacks=[attack]), Settings(n=8, batch_size=8))
        assert looks_through(spec) == exact


def test_whose_gradients_an_attack_follows() -> None:
    spec = describe(make_subject(attacks=suite("dynamic", "small")), Settings(n=8, batch_size=8))
    others = {each.name: stand_of(each) for each in spec.attacks if stand_of(each) != "white-box"}
    assert others == {
        "adaptive-transfer": "transfer",
        "zero-update": "transfer",
        "surrogates": "transfer",
        "adaptive-fewer-steps": "other",  # of another defense
        "adaptive-unrolled-warm": "other",  # begins with what a transfer found
    }


ALL_LOSSES = "ce+margin+dlr"


@final
@dataclass(frozen=True)
class Impostor(Attack):
    """Calls itself RayS, and does nothing."""

    @property
    def default_name(self) -> str:
        return "rays"

    def run(self, target: Querier, threat: ThreatModel, seed: int) -> Outcome:
        del threat, seed
        return Outcome(target.natural, torch.zeros_like(target.labels, dtype=torch.bool))

    def settings(self, norm: Norm = "linf") -> dict[str, Any]:
        return make("rays", iterations=100).settings(norm)


def test_one_attack_less_or_shorter_is_no_suite_and_one_longer_is() -> None:
    whole = suite("dynamic", "small")

    def found(attacks: Any) -> tuple[Budget | None, Any]:
        spec = describe(make_subject(attacks=attacks), Settings(n=8, batch_size=8))
        known = coverage_of(spec)
        return known.budget if known and known.version == VERSION else None, exactly(spec)

    for at, attack in enumerate(whole):
        less = [*whole[:at], *whole[at + 1 :]]
        assert found(less) == (None, None), attack.name
    others = [attack for attack in whole if attack.name != "rays"]
    short, long = make("rays", iterations=99), make("rays", iterations=101)
    assert found([*others, short]) == (None, None)
    assert found([*others, long]) == ("small", None)
    # What another attack says of itself counts for nothing.
    assert found([*others, Impostor()]) == (None, None)
    others = [attack for attack in whole if attack.name != "adaptive-bpda"]
    less, more = (make("adaptive-bpda", iterations=20, losses=each) for each in ("ce", ALL_LOSSES))
    assert found([*others, less]) == (None, None)
    assert found([*others, more]) == ("small", None)
    # AutoAttack as one set stands for its parts, batches frozen; as published it regroups them.
    parts = ("apgd-ce", "apgd-t", "fab-t", "square")
    others = [attack for attack in whole if attack.name not in parts]
    assert found([*others, make("standard")]) == ("small", None)
    assert found([*others, make("standard", protocol="published")]) == (None, None)
    assert found([make("standard")]) == (None, None)


def test_natural_members_of_mixed_batches_are_attacked_too() -> None:
    mixed = suite("dynamic", "small", mixed=True)
    alone = suite("dynamic", "small")
    assert {each.name for each in mixed} - {each.name for each in alone} == {"collateral"}
    half = Settings(n=8, batch_size=8, mix=0.5)
    spec = describe(make_subject(attacks=mixed), half)
    assert (budget_of(spec), exactly(spec)) == ("small", ("dynamic", "small"))
    assert budget_of(describe(make_subject(attacks=alone), half)) is None
    whole = describe(make_subject(attacks=mixed), Settings(n=8, batch_size=8))
    assert (budget_of(whole), exactly(whole)) == ("small", None)  # more than the suite


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="dynamic"):
        suite("static")  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="small, standard, full"):
        suite("dynamic", "tiny")  # type: ignore[arg-type]


def test_two_classes_are_enough() -> None:
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


def test_every_version_has_a_name_of_its_own() -> None:
    names = [name_of(version) for version in VERSIONS]
    assert sorted(names) == sorted(SUITES)
    assert name_of(max(VERSIONS)) == "dynamic"
    for name in SUITES:
        assert {member.name for member in members(name)}
