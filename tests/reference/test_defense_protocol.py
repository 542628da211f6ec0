"""Tests of what every defense must do, run for all defenses."""

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dent import Dent, ExportError, InputError, Status
from dent.attacks.protocol import DynamicDefense
from dent.defenses import Hedge, StatisticsPrior, TentOnline, describe, make, names

Build = Callable[[nn.Module], Any]


def of_name(name: str) -> Build:
    return lambda model: make(name, model)


BUILDS: dict[str, Build] = {name: of_name(name) for name in names()} | {
    "statistics-prior": StatisticsPrior,
    "hedge seeded": lambda model: Hedge(model, seed=0),
}


@pytest.fixture(params=BUILDS)
def build(request: pytest.FixtureRequest) -> Iterator[Build]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield BUILDS[request.param]


def fresh(defense: Any) -> Any:
    """Reset the state of a defense and the random seed, and return the defense."""
    torch.manual_seed(0)
    if isinstance(defense, TentOnline):
        defense.reset()
    return defense


def test_call_equals_adapt_and_predict(build: Build, small: nn.Sequential, batch: Tensor) -> None:
    defense = build(small)
    assert isinstance(defense, DynamicDefense)
    logits = fresh(defense)(batch)
    assert logits.shape == (5, 3)
    fresh(defense)
    assert torch.equal(defense.predict(batch, defense.adapt(batch)), logits)


def test_model_input_and_random_state_are_not_changed(
    build: Build, small: nn.Sequential, batch: Tensor
) -> None:
    small.train()
    small[0].bias.requires_grad_(False)
    before = copy.deepcopy(small)
    grads = [parameter.requires_grad for parameter in small.parameters()]
    x = batch.clone().requires_grad_()
    defense = build(small)
    random_state = torch.get_rng_state()
    adaptation = defense.adapt(x)
    logits = defense.predict(x, adaptation)
    if not describe(defense)["randomized"]:
        assert torch.equal(torch.get_rng_state(), random_state)
    logits.sum().backward()
    for (name, tensor), kept in zip(
        small.state_dict(keep_vars=True).items(), before.state_dict().values(), strict=True
    ):
        assert torch.equal(tensor, kept), name
        assert tensor.grad is None, name
    assert all(module.training for module in small.modules())
    assert [parameter.requires_grad for parameter in small.parameters()] == grads
    assert torch.equal(x, batch)


def test_defense_predicts_in_eval_mode_even_after_train(
    build: Build, small: nn.Sequential, batch: Tensor
) -> None:
    expected = fresh(build(small.eval()))(batch)
    torch.testing.assert_close(fresh(build(small.train()).train())(batch), expected)


def test_gradient_reaches_the_input_through_the_final_forward_only(
    build: Build, small: nn.Sequential, batch: Tensor
) -> None:
    defense = fresh(build(small))
    x = batch.clone().requires_grad_()
    adaptation = defense.adapt(x)
    assert x.grad is None
    tensors = [value for value in vars(adaptation).values() if isinstance(value, Tensor)]
    tensors += list(getattr(adaptation, "parameters", {}).values())
    assert tensors
    assert not any(tensor.requires_grad for tensor in tensors)
    (gradient,) = torch.autograd.grad(defense.predict(x, adaptation).square().sum(), x)
    assert bool((gradient.flatten(1).abs().amax(1) > 0).all())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_logits_do_not_depend_on_the_gradient_mode_of_the_caller(
    mode: Callable[[], Any], build: Build, small: nn.Sequential, batch: Tensor
) -> None:
    expected = fresh(build(small))(batch)
    defense = fresh(build(small))
    with mode():
        logits = defense(batch.clone())
    torch.testing.assert_close(logits, expected.detach())


def test_non_finite_rows_have_nan_logits_and_do_not_affect_other_rows(
    build: Build, small: nn.Sequential, batch: Tensor
) -> None:
    with_nan = batch.clone()
    with_nan[1, 0, 0, 0] = torch.nan
    with_nan[3] = torch.inf
    kept = [0, 2, 4]
    defense = build(small)
    adaptation = fresh(defense).adapt(with_nan)
    assert (adaptation.status == Status.INPUT_NON_FINITE).tolist() == [False, True] * 2 + [False]
    logits = defense.predict(with_nan, adaptation)
    assert bool(logits[[1, 3]].isnan().all())
    assert bool(logits[kept].isfinite().all())
    if not describe(defense)["randomized"]:
        torch.testing.assert_close(logits[kept], fresh(defense)(batch[kept]))
    if not isinstance(defense, Dent):
        assert bool(fresh(defense)(batch * torch.nan).isnan().all())


@pytest.mark.parametrize("name", [name for name in BUILDS if name != "hedge"])
def test_declared_batch_dependence_is_true(name: str, small: nn.Sequential, batch: Tensor) -> None:
    defense = BUILDS[name](small)
    described = describe(defense)
    together = fresh(defense)(batch)
    alone = torch.cat([fresh(defense)(sample) for sample in batch.split(1)])
    if described["batch_dependent"]:
        assert not torch.allclose(together, alone, atol=1e-6)
    else:
        torch.testing.assert_close(together, alone)


def test_defense_with_changing_logits_declares_state_or_randomness(
    build: Build, small: nn.Sequential, batch: Tensor
) -> None:
    defense = build(small)
    described = describe(defense)
    same = torch.equal(defense(batch), defense(batch))
    assert same or described["stateful"] or described["randomized"]


def test_description_is_plain_json_and_complete(build: Build, small: nn.Sequential) -> None:
    defense = build(small)
    described = describe(defense)
    assert json.loads(json.dumps(described, allow_nan=False)) == described
    assert set(described) == {"name", "settings", "batch_dependent", "stateful", "randomized"}
    assert described["batch_dependent"] == defense.batch_dependent
    assert defense.unwrap() is small
    assert all(f"{key}=" in repr(defense) for key in described["settings"])


@pytest.mark.parametrize("name", names())
def test_description_of_a_named_defense_has_its_name(name: str, small: nn.Sequential) -> None:
    assert describe(make(name, small))["name"] == name


@pytest.mark.parametrize(
    "x",
    [
        "image",
        torch.zeros(2, 2, 4, 4, dtype=torch.uint8),
        torch.zeros(4),
        torch.zeros(0, 2, 4, 4),
        torch.zeros(2, 7, 4, 4, dtype=torch.float64),
        torch.zeros(2, 2, 4, 4, dtype=torch.float64, device="meta"),
        torch.zeros(2, 2, 4, 4, dtype=torch.float64).to_sparse(),
    ],
    ids=["no tensor", "bytes", "one sample", "no sample", "channels", "meta", "sparse"],
)
def test_invalid_batches_are_refused(x: Tensor, build: Build, small: nn.Sequential) -> None:
    with pytest.raises(InputError):
        build(small)(x)


def test_transforms_and_recorded_graphs_are_refused(
    build: Build, small: nn.Sequential, batch: Tensor
) -> None:
    defense = build(small)
    with pytest.raises(InputError, match=r"torch\.func .* use torch\.autograd"):
        torch.func.grad(lambda x: defense(x).sum())(batch)
    with pytest.raises(ExportError, match="cannot be scripted, traced or exported"):
        torch.jit.trace(defense, batch)


def test_adaptations_of_another_kind_are_refused(
    build: Build, small: nn.Sequential, batch: Tensor
) -> None:
    with pytest.raises(InputError, match=r"pass what adapt\(x\) returned"):
        build(small).predict(batch, None)
