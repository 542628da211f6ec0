"""Views of an image, adaptation to them, and their common prediction, against a slow oracle.

The oracle shifts images pixel by pixel, keeps one real module for each sample, and uses
`torch.optim` and `backward()`. It shares only the configuration with the package.
"""

import copy
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from dent import DENT_PLUS, ConfigError, Dent, DentConfig, InputError, ViewsConfig
from dent.adaptation.objectives import agreement, entropy, log_mean_probability, loss
from dent.adaptation.views import View, views_of
from dent.attacks.adaptive import Rung, certificate
from tests.layer_toys import make_batch, make_toy

KIND = "BatchNorm2d"
THIRTEEN = [
    (False, 0, 0),
    (True, 0, 0),
    *((False, down, right) for down in (-3, 3) for right in (-3, 3)),
    *((True, down, right) for down in (-3, 3) for right in (-3, 3)),
    (False, -3, 0),
    (False, 0, 3),
    (False, 3, 0),
]
"""The documented order of views."""
VIEWS = ViewsConfig(count=6, shift=1)
ALONE = DentConfig(
    steps=3, lr=0.1, optimizer="sgd", granularity="sample", reduction="sum", views=VIEWS
)


def by_hand(image: Tensor, mirrored: bool, down: int, right: int) -> Tensor:
    """Oracle: one view of one image; each pixel comes from `down` and `right` of its position."""
    _, height, width = image.shape
    found = torch.zeros_like(image)
    for row in range(height):
        for column in range(width):
            there = (row + down, column + right)
            if 0 <= there[0] < height and 0 <= there[1] < width:
                at = width - 1 - there[1] if mirrored else there[1]
                found[:, row, column] = image[:, there[0], at]
    return found


def all_by_hand(x: Tensor, views: ViewsConfig) -> list[Tensor]:
    """Oracle: the views of a batch, for a configuration of at most six."""
    order = [(False, 0, 0), (True, 0, 0)][: 1 + views.flip]
    order += [
        (False, down * views.shift, right * views.shift) for down in (-1, 1) for right in (-1, 1)
    ]
    return [torch.stack([by_hand(image, *view) for image in x]) for view in order[: views.count]]


def test_the_order_of_views_is_as_documented() -> None:
    assert list(views_of(ViewsConfig(count=13, shift=3))) == THIRTEEN
    assert list(views_of(ViewsConfig(count=6, shift=3))) == THIRTEEN[:6]
    straight = views_of(ViewsConfig(count=11, flip=False))
    assert [view.mirrored for view in straight] == [False] * 11
    assert straight[9:] == ((False, -4, -4), (False, -4, 4))
    many = views_of(ViewsConfig(count=61))
    assert len(set(many)) == 61


@given(
    mirrored=st.booleans(),
    down=st.integers(-2, 2),
    right=st.integers(-3, 3),
    seed=st.integers(0, 1000),
)
def test_a_view_is_the_shifted_image_on_black(
    mirrored: bool, down: int, right: int, seed: int
) -> None:
    x = torch.rand(2, 2, 3, 4, generator=torch.Generator().manual_seed(seed))
    expected = torch.stack([by_hand(image, mirrored, down, right) for image in x])
    assert torch.equal(View(mirrored, down, right)(x), expected)


@pytest.mark.parametrize(
    ("x", "message"),
    [(torch.zeros(2, 3), "expected images"), (torch.zeros(2, 1, 2, 9), "shows nothing of images")],
)
def test_inputs_that_are_not_images_or_too_small_are_refused(x: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        View(False, 2, 0)(x)


def test_prediction_is_the_mean_of_the_logits_or_probabilities_of_all_views() -> None:
    model, x = make_toy(KIND).eval(), make_batch(KIND, 3)
    each = torch.stack([model(view) for view in all_by_hand(x, VIEWS)])
    logits = Dent(model, DentConfig(steps=0, views=VIEWS))
    torch.testing.assert_close(logits(x), each.mean(0))
    probabilities = Dent(model, DentConfig(steps=0, views=replace(VIEWS, predict="probabilities")))
    torch.testing.assert_close(probabilities(x).softmax(1), each.softmax(2).mean(0))
    assert not torch.allclose(logits(x).softmax(1), probabilities(x).softmax(1), atol=1e-4)
    x.requires_grad_()
    (mine,) = torch.autograd.grad(logits(x).square().sum(), x)
    again = torch.stack([model(view(x)) for view in views_of(VIEWS)]).mean(0)
    (plain,) = torch.autograd.grad(again.square().sum(), x)
    torch.testing.assert_close(mine, plain)


def test_an_image_with_nan_gets_nan_logits_even_if_some_views_omit_the_pixel() -> None:
    x = make_batch(KIND, 3)
    x[1, 0, 0, 0] = math.nan  # at a corner, which some views do not show
    logits = Dent(make_toy(KIND).eval(), DentConfig(steps=0, views=VIEWS))(x)
    assert logits.isnan().all(1).tolist() == [False, True, False]


@st.composite
def view_logits(draw: st.DrawFn) -> Tensor:
    shape = draw(st.integers(2, 4)), draw(st.integers(1, 4)), draw(st.integers(2, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    scale = 10 ** draw(st.floats(-2, 1.5))
    return torch.randn(shape, generator=generator, dtype=torch.float64) * scale


@given(view_logits())
def test_agreement_is_the_mean_divergence_from_the_mean(logits: Tensor) -> None:
    p = logits.softmax(2).numpy()
    mean = np.broadcast_to(p.mean(0), p.shape)
    expected = torch.from_numpy(scipy.stats.entropy(p, mean, axis=2).mean(0))
    torch.testing.assert_close(agreement(logits), expected, atol=1e-12, rtol=1e-9)
    assert float(agreement(logits).max()) <= math.log(len(p)) + 1e-12
    same = logits[:1].expand_as(logits)
    torch.testing.assert_close(agreement(same), torch.zeros(logits.shape[1]).double())


@given(view_logits())
def test_entropy_of_views_is_that_of_their_mean(logits: Tensor) -> None:
    expected = torch.from_numpy(scipy.stats.entropy(logits.softmax(2).mean(0).numpy(), axis=1))
    torch.testing.assert_close(
        loss(logits, "entropy", "sum"), expected.sum(), atol=1e-12, rtol=1e-9
    )
    together = agreement(logits) + entropy(logits).mean(0)
    torch.testing.assert_close(together, expected, atol=1e-12, rtol=1e-9)


def test_a_class_masked_in_every_view_does_not_change_the_objectives() -> None:
    logits = torch.randn(3, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    masked = logits.index_fill(2, torch.tensor([3]), -math.inf).requires_grad_()
    for objective in (agreement, lambda each: entropy(log_mean_probability(each))):
        torch.testing.assert_close(objective(masked), objective(logits[..., :3]))
        (gradient,) = torch.autograd.grad(objective(masked).sum(), masked)
        assert bool(gradient.isfinite().all())


def slowly(model: nn.Module, config: DentConfig, x: Tensor) -> Tensor:
    """Oracle: adapt one real module per sample or batch by SGD, and predict from its views."""
    assert config.views is not None
    sets = x.split(1) if config.granularity == "sample" else [x]
    answers = []
    for part in sets:
        module: Any = copy.deepcopy(model).eval().requires_grad_(False)
        norms = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]
        for layer in norms:
            layer.requires_grad_(True)
        weights = [weight for layer in norms for weight in layer.parameters()]
        optimizer = torch.optim.SGD(weights, lr=config.lr, momentum=config.betas[0])
        views = all_by_hand(part, config.views)
        for _ in range(config.steps):
            optimizer.zero_grad()
            p = torch.stack([module(view).softmax(1) for view in views])
            of_mean = -(p.mean(0) * p.mean(0).log()).sum(1)
            of_each = -(p * p.log()).sum(2).mean(0)
            values = of_mean if config.objective == "entropy" else of_mean - of_each
            values.sum().backward()
            optimizer.step()
        with torch.no_grad():
            logits = torch.stack([module(view) for view in views])
        chosen = {
            "logits": logits.mean(0),
            "probabilities": logits.softmax(2).mean(0).log(),
            "image": logits[0],
        }
        answers.append(chosen[config.views.predict])
    return torch.cat(answers)


@pytest.mark.parametrize("granularity", ["sample", "batch"])
@pytest.mark.parametrize("predict", ["logits", "probabilities", "image"])
@pytest.mark.parametrize("objective", ["entropy", "agreement"])
def test_adaptation_to_views_equals_real_modules(
    objective: Any, predict: Any, granularity: Any
) -> None:
    config = replace(
        ALONE,
        lr=0.1 if objective == "entropy" else 5.0,  # views of the toy nearly agree
        objective=objective,
        granularity=granularity,
        views=replace(VIEWS, count=4, predict=predict),
    )
    model, x = make_toy(KIND).eval(), make_batch(KIND, 3)
    found = Dent(model, config)(x)
    torch.testing.assert_close(found, slowly(model, config, x), atol=1e-9, rtol=1e-9)
    assert not torch.allclose(found, slowly(model, replace(config, lr=1e-9), x), atol=1e-3)


@pytest.mark.parametrize("objective", ["entropy", "agreement", "information-maximization"])
def test_more_steps_lower_the_objective_and_the_first_entropy_is_recorded(objective: Any) -> None:
    config = replace(ALONE, objective=objective, lr=0.01, steps=4)
    model, x = make_toy(KIND).eval(), make_batch(KIND, 4)
    found = Dent(model, config).adapt(x)
    each = torch.stack([model(view) for view in all_by_hand(x, VIEWS)])
    torch.testing.assert_close(found.entropy[0], entropy(log_mean_probability(each)).detach())

    def value(steps: int) -> float:
        defense = Dent(model, replace(config, steps=steps))
        adapted = defense.adapt(x)
        single = Dent(model, replace(config, steps=1, views=replace(VIEWS, predict="image")))
        seen = torch.stack([single.predict(view, adapted) for view in all_by_hand(x, VIEWS)])
        return float(loss(seen, objective, "sum").detach())

    assert value(4) < value(2) < value(1)


PLUS = replace(DENT_PLUS, steps=2, views=VIEWS)


@pytest.mark.parametrize(
    "config",
    [
        DentConfig(steps=0, views=VIEWS),
        DentConfig(steps=0, views=replace(VIEWS, predict="probabilities")),
        PLUS,
        replace(PLUS, objective="entropy"),
        replace(PLUS, objective="agreement"),
        replace(PLUS, objective="agreement", views=replace(VIEWS, predict="image")),
        replace(PLUS, granularity="batch", statistics="test"),
        replace(PLUS, last_layers=1),
    ],
    ids=["logits", "probabilities", "plus", "memo", "agreement", "image", "statistics", "last"],
)
def test_exact_gradient_with_views_is_certified(config: DentConfig) -> None:
    x = make_batch(KIND, 3)
    y = torch.tensor([0, 1, 2])
    proof = certificate(Dent(make_toy(KIND).eval(), config), x, y, rung=Rung("unrolled"))
    assert proof.dtype == "float64"
    assert proof.passed, proof


@pytest.mark.parametrize("objective", ["entropy", "agreement"])
def test_sample_wise_logits_with_views_do_not_depend_on_other_members(objective: Any) -> None:
    defense = Dent(make_toy(KIND).eval(), replace(ALONE, objective=objective))
    assert not defense.batch_dependent
    x = make_batch(KIND, 4)
    alone = torch.cat([defense(one) for one in x.split(1)])
    torch.testing.assert_close(defense(x), alone, atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"views": 6}, r"views must be a ViewsConfig or None, got 6"),
        ({"views": {"count": 1}}, r"views\.count must be a whole number, at least 2, got 1"),
        ({"views": {"count": True}}, r"views\.count must be a whole number, at least 2, got True"),
        ({"views": {"shift": 0}}, r"views\.shift must be a whole number, at least 1, got 0"),
        ({"views": {"flip": 1}}, r"views\.flip must be true or false, got 1"),
        ({"views": {"predict": "mean"}}, r"views\.predict must be one of 'logits'"),
        ({"views": {"counts": 3}}, r"ViewsConfig has no field 'counts'\. Did you mean 'count'"),
        ({"objective": "agreement"}, r"views is None\. Set views=ViewsConfig\(\)"),
    ],
)
def test_invalid_configurations_of_views_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DentConfig.from_dict(values)


def test_without_steps_predicting_from_the_image_is_the_static_model() -> None:
    model, x = make_toy(KIND).eval(), make_batch(KIND, 3)
    defense = Dent(model, replace(ALONE, views=replace(VIEWS, predict="image")))
    torch.testing.assert_close(defense.with_steps(0)(x), model(x))


def test_views_survive_a_json_round_trip_and_are_omitted_if_none() -> None:
    assert "views" not in DentConfig().to_dict()
    config = replace(ALONE, objective="agreement")
    assert config.to_dict()["views"] == {
        "count": 6,
        "shift": 1,
        "flip": True,
        "predict": "logits",
    }
    assert DentConfig.from_json(config.to_json()) == config
