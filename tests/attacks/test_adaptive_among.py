"""Tests of attacks in batches with clean members, of majorities and of warm starts."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dent import DENT, DENT_NOMINAL, Dent
from dent.adaptation.objectives import entropy
from dent.attacks import make, names
from dent.attacks.adaptive import (
    ADAPTIVE,
    NOT_AVAILABLE,
    AdaptiveAPGD,
    Among,
    Collateral,
    Majority,
    Rung,
    Unavailable,
    is_unavailable,
)
from dent.errors import ConfigError, InputError
from dent.threat import NORMS, Norm, ThreatModel
from tests.attacks.attack_toys import (
    SMALL,
    Company,
    Speechless,
    Toy,
    linear,
    small_images,
)
from tests.layer_toys import CLASSES, make_batch, make_toy

MASK = torch.tensor([True, False, True, True, False, False])
LINF = ThreatModel("linf", 0.1)


def batch() -> tuple[Company, Tensor, Tensor]:
    x, company = small_images(6), Company(linear())
    return company, x, company(x).argmax(1)


class Watched(Company):
    """A `Company` that records the batch of every prediction."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.asked: list[Tensor] = []

    def predict(self, x: Tensor, adaptation: Tensor) -> Tensor:
        self.asked.append(x.detach().clone())
        return super().predict(x, adaptation)


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("norm", NORMS)
def test_attack_does_not_change_clean_members_in_any_query(name: str, norm: Norm) -> None:
    _, x, y = batch()
    watched = Watched(linear())
    among = Among(watched, x, y, MASK)
    threat = ThreatModel(norm, {"linf": 0.1, "l2": 0.5, "l1": 3.0}[norm])
    result = make(name, **SMALL[name])(among, x[MASK], y[MASK], threat, seed=0)
    assert result.adversarial.shape == x[MASK].shape
    assert not threat.check(result.adversarial, x[MASK]).any()
    assert watched.asked
    for whole in watched.asked:
        assert torch.equal(whole[~MASK], x[~MASK])
        if name == "rays":  # its search queries images outside the threat model
            continue
        assert torch.cdist(whole.flatten(1), x.flatten(1)).argmin(1).tolist() == [*range(6)]
    served = watched(among.whole(result.adversarial)).argmax(1)
    assert torch.equal(served[MASK] != y[MASK], result.fooled)


def test_among_queries_the_whole_batch_with_members_in_their_places() -> None:
    company, x, y = batch()
    among = Among(company, x, y, MASK)
    moved = (x + 0.05).clamp(0, 1)
    whole = torch.where(MASK.view(-1, 1, 1, 1), moved, x)
    assert torch.equal(among.whole(moved[MASK]), whole)
    assert torch.equal(among(moved[MASK]), company(whole)[MASK])
    assert torch.equal(among.answer_others(moved[MASK]), company(whole)[~MASK])
    assert torch.equal(among.labels, y[~MASK])
    assert among.batch_dependent
    leaf = moved[MASK].requires_grad_()
    (exact,) = torch.autograd.grad(among.answer_others(leaf, exact=True).square().sum(), leaf)
    assert exact.abs().sum() > 0
    with pytest.raises(InputError, match="keep its batch together"):
        among(moved[:2])


def test_rungs_through_among_match_those_of_the_whole_batch() -> None:
    defense = Dent(make_toy("BatchNorm2d"), replace(DENT, steps=4, lr=0.1))
    x, y = make_batch("BatchNorm2d", 4), torch.arange(4) % CLASSES
    mask = torch.tensor([True, True, False, True])
    among = Among(defense, x, y, mask)
    rows = x[mask]
    assert torch.equal(Rung("transfer").view(among)(rows), defense.unwrap().eval()(rows))
    fewer = Rung("fewer-steps", 1).view(among)(rows)
    torch.testing.assert_close(fewer, defense.with_steps(1)(x)[mask])
    leaf, all_of_it = rows.clone().requires_grad_(), x.clone().requires_grad_()
    (found,) = torch.autograd.grad(Rung("unrolled").view(among)(leaf).square().sum(), leaf)
    logits = Rung("unrolled").view(defense)(all_of_it)[mask]
    (expected,) = torch.autograd.grad(logits.square().sum(), all_of_it)
    torch.testing.assert_close(found, expected[mask])
    majority = Majority(among.over(defense), 2)
    assert isinstance(majority.over(defense), Majority)
    torch.testing.assert_close(Rung("transfer").view(majority)(rows), defense.unwrap()(rows))
    with pytest.raises(Unavailable, match="no unwrap"):
        Rung("transfer").view(Among(_Bare(), x, y, mask))


class _Bare:
    batch_dependent = True

    def adapt(self, x: Tensor) -> None:
        return None

    def predict(self, x: Tensor, adaptation: None) -> Tensor:
        return x.flatten(1)[:, :CLASSES]

    def __call__(self, x: Tensor) -> Tensor:
        return self.predict(x, None)


@pytest.mark.parametrize(
    ("mask", "match"),
    [
        (torch.zeros(6, dtype=torch.bool), "at least one"),
        (torch.ones(5, dtype=torch.bool), r"bool \(6,\)"),
        (torch.ones(6), r"bool \(6,\)"),
    ],
)
def test_invalid_mask_of_attacked_members_is_refused(mask: Tensor, match: str) -> None:
    company, x, y = batch()
    with pytest.raises(InputError, match=match):
        Among(company, x, y, mask)


def test_collateral_fools_clean_members_by_changing_attacked_members() -> None:
    class Pull(Company):
        def predict(self, x: Tensor, adaptation: Tensor) -> Tensor:
            return self.model(x) - 15 * adaptation  # type: ignore[no-any-return]

    company, x = Pull(linear()), small_images(6)
    y = company(x).argmax(1)
    among = Among(company, x, y, MASK)
    threat = ThreatModel("linf", 0.5)
    attack = Collateral(iterations=20, restarts=2)
    result = attack(among, x[MASK], y[MASK], threat, seed=0)
    right = int((among.answer_others(result.adversarial).argmax(1) == y[~MASK]).sum())
    assert right < 3
    assert result.notes == (
        f"clean members right: {right} of 3, 3 without the attack (exact gradient)",
    )
    # An attack on the attacked members themselves fools no more clean members.
    other = make("pgd", iterations=20)(among, x[MASK], y[MASK], threat, seed=0)
    assert int((among.answer_others(other.adversarial).argmax(1) == y[~MASK]).sum()) >= right
    assert (result.queries, result.backwards) <= attack.queries(4)


def test_collateral_raises_the_loss_of_clean_members_of_dent(
    tiny_cnn: nn.Module, images: Tensor
) -> None:
    x = images[:8, :, 8:20, 8:20]
    mask = torch.arange(8) < 6
    for config in (replace(DENT, steps=3, lr=0.05), replace(DENT_NOMINAL, steps=1, smoothing=None)):
        defense = Dent(tiny_cnn, config)
        y = defense(x).argmax(1)
        among = Among(defense, x, y, mask)
        attack = Collateral(iterations=6)
        result = attack(among, x[mask], y[mask], ThreatModel("linf", 0.3), seed=0)
        before, after = (
            torch.nn.functional.cross_entropy(among.answer_others(rows), y[~mask])
            for rows in (x[mask], result.adversarial)
        )
        assert after > before
        assert "exact gradient" in result.notes[0]


@pytest.mark.parametrize(
    ("defense", "missing"),
    [
        (Company(linear()), "the whole batch is the attacker's"),
        (linear(), "the whole batch is the attacker's"),
        (
            Among(Toy(linear()), small_images(6), torch.zeros(6, dtype=torch.int64), MASK),
            "no member's answer depends",
        ),
    ],
)
def test_collateral_is_not_available_without_clean_members_or_batch_dependence(
    defense: Any, missing: str
) -> None:
    x = small_images(6)[MASK]
    y = torch.zeros(3, dtype=torch.int64)
    result = Collateral(iterations=2)(defense, x, y, LINF, seed=0)
    (note,) = result.notes
    assert note.startswith(NOT_AVAILABLE)
    assert missing in note
    assert torch.equal(result.adversarial, x)


def test_clean_member_with_nan_logits_counts_as_wrong() -> None:
    x = small_images(6)
    y = torch.zeros(6, dtype=torch.int64)
    mute = Speechless(linear(), (1,), 6)
    mute.batch_dependent = True
    result = Collateral(iterations=2)(Among(mute, x, y, MASK), x[MASK], y[MASK], LINF, seed=0)
    right = int((linear()(x)[[4, 5]].argmax(1) == 0).sum())
    assert f"{right} without the attack" in result.notes[0]
    assert result.adversarial.isfinite().all()


class Dice(Toy):
    """Reverses the logits of random members in every query, each with probability 0.3."""

    def adapt(self, x: Tensor, *, differentiable: bool = False, last: int | None = None) -> Tensor:
        return torch.rand(len(x), 1)

    def predict(self, x: Tensor, adaptation: Tensor) -> Tensor:
        logits: Tensor = self.model(x)
        return torch.where(adaptation < 0.3, logits.flip(1), logits)


def test_majority_counts_votes_and_has_the_mean_gradient() -> None:
    x = small_images(6)
    dice = Dice(linear())
    torch.manual_seed(0)
    answers = torch.stack([dice(x) for _ in range(5)])
    torch.manual_seed(0)
    votes = Majority(dice, 5)(x)
    counted = nn.functional.one_hot(answers.argmax(2), 4).sum(0)
    assert torch.equal(votes.detach().floor(), counted.float())
    assert torch.equal(votes.argmax(1), counted.argmax(1))
    leaf = x.clone().requires_grad_()
    torch.manual_seed(0)
    (found,) = torch.autograd.grad(Majority(dice, 5)(leaf)[:, 0].sum(), leaf)
    torch.manual_seed(0)
    mean = torch.stack([dice(leaf) for _ in range(5)]).mean(0)
    torch.testing.assert_close(found, torch.autograd.grad(mean[:, 0].sum(), leaf)[0])


def test_majority_of_nan_logits_is_nan() -> None:
    x = small_images(3)
    votes = Majority(Speechless(linear(), (1,), 3), 3)(x)
    assert votes[1].isnan().all()
    assert votes[[0, 2]].isfinite().all()
    with pytest.raises(ConfigError, match="at least 2"):
        Majority(Toy(linear()), 1)


def test_warm_start_is_no_weaker_than_the_transfer_attack() -> None:
    class Flat(Toy):
        def predict(self, x: Tensor, adaptation: Any) -> Tensor:
            return self.model(x.detach()) + 0 * x.sum()  # type: ignore[no-any-return]

    x, defense = small_images(8), Flat(linear())
    y = defense(x).argmax(1)
    blind, warm = (
        AdaptiveAPGD("stop-gradient", iterations=10, warm=warm)(
            defense, x, y, ThreatModel("linf", 0.03), seed=0
        )
        for warm in (False, True)
    )
    alone = AdaptiveAPGD("transfer", losses=("margin",), iterations=10)(
        defense, x, y, ThreatModel("linf", 0.03), seed=0
    )
    assert warm.fooled.sum() >= alone.fooled.sum() > blind.fooled.sum()
    planned = AdaptiveAPGD("stop-gradient", iterations=10, warm=True).queries(4)
    # For a batch-independent defense, the query of the members' strongest images is not needed.
    assert (warm.queries + 1, warm.backwards) == planned


def test_only_the_first_run_of_each_loss_starts_from_the_transfer_result() -> None:
    x, watched = small_images(8), Watched(linear())
    y = watched(x).argmax(1)
    attack = AdaptiveAPGD(
        "stop-gradient", losses=("ce", "margin"), iterations=2, restarts=2, warm=True
    )
    watched.asked.clear()
    attack(watched, x, y, ThreatModel("linf", 1e-3), seed=0)
    transferred = watched.asked[1]  # the result on the static model comes after the natural images
    starts = [watched.asked[2 + 3 * run] for run in range(4)]
    assert [torch.equal(start, transferred) for start in starts] == [True, False, True, False]


def test_zero_update_images_are_misclassified_with_low_entropy(
    tiny_cnn: nn.Module, images: Tensor
) -> None:

    x = images[:6, :, 8:20, 8:20]
    y = tiny_cnn(x).argmax(1)
    threat = ThreatModel("linf", 0.5)
    sure = make("zero-update", iterations=20)(tiny_cnn, x, y, threat, seed=0).adversarial
    wrong = make("adaptive-transfer", losses=("dlr",), iterations=20)(
        tiny_cnn, x, y, threat, seed=0
    ).adversarial
    assert (tiny_cnn(sure).argmax(1) != y).all()
    assert entropy(tiny_cnn(sure)).mean() < entropy(tiny_cnn(wrong)).mean()


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"iterations": 0}, "iterations"),
        ({"restarts": 0}, "restarts"),
        ({"submissions": 0}, "submissions"),
        ({"targets": -1}, "targets"),
        ({"rho": 0.0}, "rho"),
        ({"losses": ()}, "a loss or a target"),
        ({"losses": ("square",)}, "loss must be one of"),
        ({"losses": "ce,margin"}, "loss must be one of"),
        ({"iterations": 2.5}, "iterations must be a whole number, at least 1, got 2.5"),
        ({"warm": "yes"}, "warm must be true or false"),
        ({"targeted": "square"}, "loss must be one of"),
        ({"pool": 2}, "pool is for warm=true"),
        ({"pool": -1, "warm": True}, "pool"),
        ({"stride": 0}, "stride must be above 0"),
        ({"stride": "long"}, "stride must be above 0"),
        ({"rung": "guess"}, "rung must be one of"),
    ],
)
def test_invalid_settings_of_adaptive_apgd_are_refused(values: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        AdaptiveAPGD(**values)


def test_losses_can_be_given_as_one_string() -> None:
    attack = make("adaptive-bpda", losses="ce+margin")
    assert attack.settings() == make("adaptive-bpda", losses=("ce", "margin")).settings()


@pytest.mark.parametrize("name", sorted(ADAPTIVE.keys() - {"rays"}))
def test_longer_attack_differs_only_in_its_iterations(name: str) -> None:
    attack: Any = make(name, iterations=3)
    longer = attack.longer()
    assert (longer.name, type(longer)) == (attack.name, type(attack))
    assert longer.settings() == attack.settings() | {"iterations": 6}


class Adapting(Company):
    """Counts its adaptations, and those with a gradient through all steps."""

    adapted = 0
    looked_through = 0

    def adapt(self, x: Tensor, *, differentiable: bool = False, last: int | None = None) -> Tensor:
        self.adapted += 1
        self.looked_through += differentiable and last is None
        return super().adapt(x, differentiable=differentiable, last=last)


@pytest.mark.parametrize("unrolled", [False, True])
@pytest.mark.parametrize("name", sorted(ADAPTIVE.keys() - {"collateral", "gmsa-min", "surrogates"}))
def test_unadapted_and_through_adaptation_match_counted_adaptations(
    name: str, unrolled: bool
) -> None:
    settings = dict(SMALL[name])
    if name in ("fpa", "gmsa-avg"):
        settings["unrolled"] = unrolled
    elif name.startswith("adaptive"):
        settings["warm"] = unrolled
    x, defense = small_images(5), Adapting(linear())
    y = Company(linear())(x).argmax(1)
    attack = make(name, **settings)
    threat = ThreatModel("linf", 1e-6)  # too small to fool any member
    result = attack(defense, x, y, threat, seed=0)
    planned, cheap = attack.queries(4), attack.unadapted(4)
    assert (result.queries, result.backwards) == planned
    assert defense.adapted == planned.forwards - cheap.forwards
    if name != "adaptive-fewer-steps":  # its gradient goes through a weaker defense
        assert defense.looked_through == attack.through_adaptation(4)
    least = make("gmsa-min", **SMALL["gmsa-min"])
    assert least.queries(4).forwards - least.unadapted(4).forwards == 5


@pytest.mark.parametrize("values", [{"iterations": 0}, {"restarts": 0}, {"rho": 1.0}])
def test_invalid_settings_of_collateral_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        Collateral(**values)


class Noise(nn.Module):
    """A plain module that adds noise to its input, from torch's global generator."""

    def __init__(self, model: nn.Module, size: float = 0.1) -> None:
        super().__init__()
        self.model, self.size = model, size
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x + self.size * torch.randn(x.shape).to(x))
        return logits


@pytest.mark.parametrize("name", names())
def test_majority_and_among_take_plain_modules(name: str) -> None:
    model, x = linear(), small_images(6)
    y = model(x).argmax(1)
    controlled = torch.arange(6) < 4
    threat = ThreatModel("linf", 0.2)
    attack = make(name, **SMALL[name])
    among = attack(Among(model, x, y, controlled), x[:4], y[:4], threat, seed=0)
    vote = attack(Majority(Noise(model), 3), x, y, threat, seed=0)
    if name in ("collateral", "adaptive-fewer-steps"):
        assert all(is_unavailable(result.notes) for result in (among, vote))
        return
    assert not is_unavailable(among.notes)
    assert not is_unavailable(vote.notes)
    assert torch.equal(model(among.adversarial).argmax(1) != y[:4], among.fooled)
    if name not in ("rays", "square"):  # their budgets are too small here
        assert bool(among.fooled.any())
        assert bool(vote.fooled.any())


def test_majority_and_among_name_what_they_cannot_wrap() -> None:
    x = small_images(4)
    y, every = torch.zeros(4, dtype=torch.int64), torch.ones(4, dtype=torch.bool)
    text: Any = "dent"
    with pytest.raises(InputError, match="batch_dependent, got str"):
        Majority(text, 3)
    with pytest.raises(InputError, match="batch_dependent, got str"):
        Among(text, x, y, every)
    with pytest.raises(InputError, match="Sequential is in training mode"):
        Majority(linear().train(), 3)
    listed: Any = [True] * 4
    with pytest.raises(InputError, match=r"controlled must be a tensor, bool \(4,\), got list"):
        Among(linear(), x, y, listed)


@pytest.mark.parametrize("name", ["apgd-ce", "fab-t", "square", "standard"])
def test_autoattack_that_asks_the_standing_members_keeps_an_among_together(name: str) -> None:
    model, x = linear(), small_images(6)
    y = model(x).argmax(1)
    y[0] = (y[0] + 1) % 4
    defense = Among(Toy(model), x, y, torch.arange(6) < 4)
    threat = ThreatModel("linf", 0.05)
    results = [
        make(name, **SMALL[name], ask=ask)(defense, x[:4], y[:4], threat, seed=0)
        for ask in ("whole", "standing")
    ]
    assert torch.equal(results[0].adversarial, results[1].adversarial)
    assert results[0].queries == results[1].queries
