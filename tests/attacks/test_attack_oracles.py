"""Tests of attacks on a linear classifier, whose smallest perturbation has a closed form."""

import pytest
import torch
from torch import Tensor, nn

from dent.attacks import make
from dent.attacks.adaptive.rays import _Search
from dent.threat import Norm, ThreatModel

DUAL = {"linf": 1, "l2": 2, "l1": float("inf")}


def two_classes(seed: int = 0, padding: int = 0) -> tuple[nn.Module, Tensor, Tensor]:
    """Return a linear classifier of two classes, and gray images around 0.5 with their labels.

    `padding` adds classes that are never predicted, because targeted DLR needs four classes.
    """
    draws = torch.Generator().manual_seed(seed)
    layer = nn.Linear(75, 2 + padding)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.fill_(-20.0)
        layer.weight[:2].normal_(generator=draws)
        # One weight is much larger than the others, so that l1 has a best pixel.
        layer.weight[0, 0] += 6.0
        layer.bias[:2] = -layer.weight[:2].sum(dim=1) / 2
    model = nn.Sequential(nn.Flatten(), layer).eval()
    x = 0.5 + 0.02 * torch.randn(2, 3, 5, 5, generator=draws)
    with torch.no_grad():
        return model, x, model(x).argmax(dim=1)


def closest(model: nn.Module, x: Tensor, y: Tensor, norm: Norm) -> Tensor:
    """Return the distance of each image to the boundary: the oracle, in closed form."""
    weight, bias = (parameter.detach().double() for parameter in model.parameters())
    logits = x.double().flatten(1) @ weight.T + bias
    rows = torch.arange(len(x))
    margin = logits[rows, y] - logits[rows, 1 - y]
    steepest: Tensor = (weight[0] - weight[1]).norm(p=DUAL[norm])
    return margin / steepest


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize(
    ("name", "settings", "padding", "slack"),
    [
        ("pgd", {"iterations": 40, "share": 0.01}, 0, 1.001),
        ("apgd-ce", {"iterations": 20, "restarts": 1}, 0, 1.05),
        ("apgd-dlr", {"iterations": 20, "restarts": 1}, 2, 1.05),
        ("apgd-t", {"iterations": 20, "targets": 1}, 2, 1.05),
        (
            "apgd-t",
            {"iterations": 20, "targets": 1},
            0,
            1.05,
        ),  # two classes: cross-entropy replaces DLR
        ("fab", {"iterations": 10, "restarts": 1}, 0, 1.06),  # goes 5% past the boundary
        ("fab-t", {"iterations": 10}, 0, 1.06),
        ("fab-t", {"iterations": 10, "targets": 1}, 2, 1.06),
    ],
)
def test_attack_succeeds_just_above_the_closed_form_radius_and_not_below(
    norm: Norm, name: str, settings: dict[str, float], padding: int, slack: float
) -> None:
    model, x, y = two_classes(padding=padding)
    far = closest(model, x, y, norm)
    assert (far > 0).all()
    if norm == "l1" and name.startswith("apgd"):
        slack = 1.5  # its smallest step is a tenth of eps, over several pixels
    attack = make(name, **settings)
    for member in range(len(x)):
        one, label = x[member : member + 1], y[member : member + 1]
        within = ThreatModel(norm, float(far[member]) * slack)
        short = ThreatModel(norm, float(far[member]) * 0.999)
        assert attack(model, one, label, within, seed=0).fooled.item()
        assert not attack(model, one, label, short, seed=0).fooled.item()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_fab_finds_the_smallest_perturbation(norm: Norm) -> None:
    model, x, y = two_classes()
    far = closest(model, x, y, norm)
    threat = ThreatModel(norm, min(1.0, 3 * float(far.max())))
    found = make("fab", iterations=20, restarts=1)(model, x, y, threat, seed=0)
    distance = threat.distance(found.adversarial, x)
    assert found.fooled.all()
    assert (distance >= far * 0.999).all()
    assert (distance <= far * 1.06).all()


def test_square_succeeds_at_a_large_eps_and_not_below_the_closed_form() -> None:
    model, x, y = two_classes()
    far = closest(model, x, y, "linf")
    attack = make("square", iterations=300)
    assert attack(model, x, y, ThreatModel("linf", 0.5), seed=0).fooled.all()
    short = ThreatModel("linf", float(far.min()) * 0.999)
    assert not attack(model, x, y, short, seed=0).fooled.any()


def test_rays_comes_close_to_the_closed_form_without_gradients() -> None:
    model, x, y = two_classes()
    far = closest(model, x, y, "linf")
    attack = make("rays", iterations=600)
    for member in range(len(x)):
        one, label = x[member : member + 1], y[member : member + 1]
        near = ThreatModel("linf", float(far[member]) * 1.25)
        short = ThreatModel("linf", float(far[member]) * 0.999)
        found = attack(model, one, label, near, seed=0)
        assert found.fooled.item()
        assert found.backwards == 0
        assert not attack(model, one, label, short, seed=0).fooled.item()


def test_rays_fools_a_member_alone_if_and_only_if_it_does_in_a_batch() -> None:
    model, x, y = two_classes()
    threat = ThreatModel("linf", 1.3 * float(closest(model, x, y, "linf").max()))
    together = make("rays", iterations=700)(model, x, y, threat, seed=0)
    for member in range(len(x)):
        one, label = x[member : member + 1], y[member : member + 1]
        alone = make("rays", iterations=700)(model, one, label, threat, seed=0)
        assert torch.equal(alone.fooled, together.fooled[member : member + 1])
    assert together.fooled.all()


def test_rays_goes_on_where_its_tolerance_is_smaller_than_the_spacing_of_float32() -> None:
    x = torch.full((1, 1, 16, 16), 0.05)
    threat = ThreatModel("l1", "0.002")
    search = _Search(x, threat, torch.zeros(1, dtype=torch.bool))
    asked = []
    for _ in range(60):
        images = search.ask()
        asked.append(float(images.mean()))
        search.tell(images.flatten(1).mean(1) > 0.8)
    assert len(set(asked[:24])) > 20  # bisection
    assert int(search._stage) > 2
