"""Tests of AutoAttack and adaptive attacks on defenses with known robustness.

The models are linear, so their robust accuracy has a closed form.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dent.attacks import make
from dent.attacks.adaptive import AdaptiveAPGD, Among, Majority, ModelSpace, Rung, certificate
from dent.defenses import ET3, AntiAdversary, Hedge
from dent.threat import ThreatModel
from tests.attacks.known_defenses import (
    AllOrNothing,
    Chooser,
    Identity,
    LargeOnly,
    Leaky,
    Loud,
    Masked,
    Nearest,
    Undecided,
    withstands,
)

PIXELS = 48
LINF = ThreatModel("linf", "8/255")


def classifier(scale: float = 1.0, seed: int = 0) -> nn.Sequential:
    """Return a linear classifier of four classes, whose weights are random signs times `scale`."""
    layer = nn.Linear(PIXELS, 4)
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        layer.weight.copy_(scale * torch.randn(4, PIXELS, generator=draws).sign())
        layer.bias.copy_(-layer.weight.sum(dim=1) / 2)
    return nn.Sequential(nn.Flatten(), layer).eval()


def images(count: int = 24) -> Tensor:
    draws = torch.Generator().manual_seed(5)
    return (torch.rand(count, 3, 4, 4, generator=draws) * 191 + 32).round() / 255


def right(defense: Any, x: Tensor, y: Tensor) -> int:
    with torch.no_grad():
        return int((defense(x).argmax(1) == y).sum())


def served(attack: Any, defense: Any, x: Tensor, y: Tensor, threat: ThreatModel = LINF) -> int:
    """Return the number of correct predictions when the batch of an attack is submitted."""
    return right(defense, attack(defense, x, y, threat, seed=0).adversarial, y)


def truth(model: nn.Module, x: Tensor, y: Tensor) -> int:
    """Return the number of images that stay correct under every perturbation."""
    return int(withstands(model, x, y, LINF.eps).sum())


@pytest.fixture
def weak() -> nn.Sequential:
    return classifier()


@pytest.fixture
def x() -> Tensor:
    return images()


@pytest.fixture
def y(weak: nn.Sequential, x: Tensor) -> Tensor:
    with torch.no_grad():
        labels: Tensor = weak(x).argmax(1)
    return labels


PLAIN = {"iterations": 20}
ADAPTIVE = {
    "transfer": AdaptiveAPGD("transfer", losses=("margin",), iterations=20, targets=3),
    "bpda": AdaptiveAPGD("bpda", losses=("margin",), iterations=20, targets=3),
    "gmsa-min": ModelSpace("gmsa-min", rounds=3, iterations=10),
}


def test_apgd_t_reaches_the_closed_form_robust_accuracy(
    weak: nn.Sequential, x: Tensor, y: Tensor
) -> None:
    known = truth(weak, x, y)
    assert 4 < known < 20
    assert served(make("apgd-t", **PLAIN), weak, x, y) == known


@pytest.mark.parametrize("name", ["apgd-t", *ADAPTIVE])
def test_attack_on_identity_is_identical_to_that_on_the_static_model(
    name: str, weak: nn.Sequential, x: Tensor, y: Tensor
) -> None:
    attack = ADAPTIVE.get(name) or make(name, **PLAIN)
    own, static = (attack(d, x, y, LINF, seed=3) for d in (Identity(weak), weak))
    assert torch.equal(own.adversarial, static.adversarial)
    assert torch.equal(own.fooled, static.fooled)


def test_masked_gradient_defeats_apgd_t_but_not_transfer_and_bpda(
    weak: nn.Sequential, x: Tensor, y: Tensor
) -> None:
    masked, known = Masked(weak), truth(weak, x, y)
    assert served(make("apgd-t", **PLAIN), masked, x, y) > known + 4
    assert served(AdaptiveAPGD("stop-gradient", iterations=20), masked, x, y) > known + 4
    for name in ("transfer", "bpda"):
        assert served(ADAPTIVE[name], masked, x, y) <= known + 1
    double = Masked(classifier().double()), x.double(), y
    assert not certificate(*double, rung=Rung("stop-gradient")).passed


def test_noise_in_the_gradient_is_averaged_away_by_more_submissions(
    weak: nn.Sequential, x: Tensor, y: Tensor
) -> None:
    loud, known = Loud(weak, 12.0), truth(weak, x, y)
    found = [
        served(
            AdaptiveAPGD("stop-gradient", losses=("margin",), iterations=10, submissions=n),
            loud,
            x,
            y,
        )
        for n in (1, 64)
    ]
    assert found[0] > found[1] + 3  # the gradient of one submission is too noisy
    assert found[1] < known + 5
    assert served(ADAPTIVE["bpda"], loud, x, y) <= known + 5 < found[0] + 5


def test_majority_raises_clean_accuracy_but_not_robust_accuracy(
    weak: nn.Sequential, x: Tensor, y: Tensor
) -> None:
    torch.manual_seed(3)
    once = Undecided(weak)
    alone = sum(right(once, x, y) for _ in range(10)) / 10
    many = sum(right(Majority(once, 15), x, y) for _ in range(10)) / 10
    assert alone == pytest.approx(16, abs=3)  # a third of 24 is wrong by chance
    assert many > alone + 3
    # Under attack, the majority is about as accurate as the static model.
    found = AdaptiveAPGD("transfer", losses=("margin",), iterations=20, targets=3)
    kept = served(found, Majority(once, 15), x, y)
    assert kept == pytest.approx(truth(weak, x, y), abs=4)


def test_large_only_defense_is_robust_in_large_batches_but_not_in_small(
    weak: nn.Sequential, x: Tensor, y: Tensor
) -> None:
    robust = Nearest(x, y)
    defense = LargeOnly(weak, robust, size=24)
    assert right(defense, x, y) == right(defense, x[:4], y[:4]) + 20 == 24
    assert served(ADAPTIVE["gmsa-min"], defense, x, y) == 24
    # A smaller batch is predicted by the static model.
    assert served(ADAPTIVE["gmsa-min"], defense, x[:12], y[:12]) == truth(weak, x[:12], y[:12])


def test_all_or_nothing_defense_fails_in_a_batch_with_clean_members(
    weak: nn.Sequential, x: Tensor, y: Tensor
) -> None:
    defense = AllOrNothing(weak, Nearest(x, y))
    # A plain attack changes the whole batch, and so fools few members: no image is an 8-bit image.
    assert served(make("apgd-ce", **PLAIN), defense, x, y) > truth(weak, x, y) + 8
    controlled = torch.arange(24) < 12
    among = Among(defense, x, y, controlled)
    found = ADAPTIVE["transfer"](among, x[:12], y[:12], LINF, seed=0)
    whole = torch.cat([found.adversarial, x[12:]])
    assert right(defense, whole, y) == truth(weak, x[:12], y[:12]) + 12
    assert int((~found.fooled).sum()) == truth(weak, x[:12], y[:12])


def test_gmsa_fools_chooser_more_than_fpa_does(weak: nn.Sequential, x: Tensor, y: Tensor) -> None:
    other = classifier(seed=1)
    with torch.no_grad():
        both = (other(x).argmax(1) == y).nonzero().flatten()
    x, y = x[both], y[both]
    defense, threat = Chooser(weak, other, y), ThreatModel("linf", "20/255")
    kept = {
        name: served(attack, defense, x, y, threat)
        for name, attack in {
            "plain": AdaptiveAPGD("stop-gradient", losses=("ce",), iterations=20),
            "fpa": ModelSpace("fpa", rounds=4, iterations=20),
            "gmsa-avg": ModelSpace("gmsa-avg", rounds=4, iterations=20),
            "gmsa-min": ModelSpace("gmsa-min", rounds=4, iterations=20),
        }.items()
    }
    assert kept["gmsa-min"] < kept["fpa"]
    assert kept["gmsa-min"] < kept["plain"]
    assert kept["gmsa-avg"] < kept["fpa"]


def test_claims_about_a_leaky_defense_are_not_reproduced(
    weak: nn.Sequential, x: Tensor, y: Tensor
) -> None:
    leaky = Leaky(weak)
    first, _, third = leaky(x), leaky(1 - x), leaky(x)
    assert (first - third).abs().max() > 0.5
    # Predictions depend on the previous batch, so those in the attack's last query differ from
    # those on submission.
    result = make("apgd-ce", **PLAIN)(leaky, x, y, LINF, seed=0)
    leaky.before = None
    again = leaky(result.adversarial).argmax(1) != y
    assert not torch.equal(again, result.fooled)


@pytest.mark.parametrize("kind", ["anti-adversary", "hedge", "et3"])
def test_published_input_defenses_gain_nothing_under_a_transfer_attack(
    kind: str, weak: nn.Sequential, x: Tensor, y: Tensor
) -> None:
    model = classifier(scale=2.0)
    defense: AntiAdversary | ET3 | Hedge = Hedge(model, seed=0)
    if kind != "hedge":
        defense = AntiAdversary(model) if kind == "anti-adversary" else ET3(model)
    known = truth(model, x, y)
    assert served(ADAPTIVE["transfer"], model, x, y) == known
    transferred = served(ADAPTIVE["transfer"], defense, x, y)
    assert transferred <= known + 1
    if kind == "anti-adversary":
        plain = AdaptiveAPGD("stop-gradient", losses=("ce",), iterations=20)
        assert served(plain, defense, x, y) > transferred + 2
