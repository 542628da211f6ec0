"""The prefix, the layers before the adapted ones, is computed once without changing results."""

import gc
import pickle
import random
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import numpy
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dent import Adaptation, Dent, DentConfig
from dent.adaptation.prefix import Prefix
from tests import slow_dent

CONFIG = DentConfig(steps=4, lr=0.05, last_layers=1)


class Counted(nn.Conv2d):
    """Counts its calls, over all copies."""

    calls: ClassVar[list[int]] = []

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        type(self).calls.append(len(input))
        return super().forward(input)


class Shift(nn.Module):
    """Adds a constant to its input, in place or not."""

    in_place = True

    def forward(self, x: Tensor) -> Tensor:
        return x.add_(0.1) if self.in_place else x + 0.1


class Noise(nn.Module):
    """Adds different noise in every call."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * torch.rand_like(x)


class Functional(nn.Module):
    """Has operations between its modules, as ResNets do."""

    def __init__(self, *first: nn.Module) -> None:
        super().__init__()
        self.first = nn.Sequential(*first)
        self.norm1 = nn.BatchNorm2d(3)
        self.conv2 = Counted(3, 4, 1)
        self.norm2 = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(x, self.first(x))

    def rest(self, x: Tensor, found: Tensor) -> Tensor:
        x = F.relu(self.norm1(found) + x)
        return self.head(F.gelu(self.norm2(self.conv2(x))).mean((2, 3)))


class Between(Functional):
    """Changes the output of one of its modules in place."""

    def forward(self, x: Tensor) -> Tensor:
        found = self.first(x).mul_(0.7).add_(0.1)
        return self.rest(found, found)


def make(*first: nn.Module, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    model = Functional(*(first or (Counted(3, 3, 3, padding=1),)))
    return model.to(dtype).eval()


def images(count: int = 3) -> Tensor:
    draws = torch.Generator().manual_seed(2)
    return torch.rand(count, 3, 5, 5, generator=draws, dtype=torch.float64)


def calls(run: Callable[[], object]) -> int:
    Counted.calls.clear()
    run()
    return len(Counted.calls)


def tried(model: nn.Module, config: DentConfig) -> Dent:
    """Return a defense after its first batch, which also checks its copy of the model."""
    defense = Dent(model, config)
    defense(images())
    return defense


@pytest.mark.parametrize("granularity", ["batch", "sample"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_steps_and_final_forward_share_one_prefix(
    granularity: str, mode: Callable[[], torch.no_grad]
) -> None:
    config = DentConfig(steps=4, lr=0.05, last_layers=1, granularity=granularity)  # type: ignore[arg-type]
    model, x = make(), images()
    expected = slow_dent.adapt_and_predict(model, config, x).logits
    defense = tried(model, config)
    with mode():
        assert calls(lambda: defense(x)) == 2  # two convolutions, once each
        torch.testing.assert_close(defense(x), expected, atol=1e-10, rtol=1e-10)
        assert calls(lambda: defense.predict(x, defense.adapt(x))) == 2
    everywhere = tried(model, DentConfig(steps=4, lr=0.05))
    assert calls(lambda: everywhere(x)) == 10


def test_a_pickled_adaptation_does_not_contain_the_outputs_of_the_prefix() -> None:
    model, x = make(), images()
    defense = tried(model, CONFIG)
    adapted = defense.adapt(x)
    stored = pickle.loads(pickle.dumps(adapted))  # noqa: S301
    assert calls(lambda: defense.predict(x, adapted)) == 0
    assert calls(lambda: defense.predict(x, stored)) == 2
    torch.testing.assert_close(defense.predict(x, stored), defense.predict(x, adapted))


def test_the_final_forward_recomputes_the_prefix_for_an_input_gradient() -> None:
    model, x = make(), images().requires_grad_()
    defense = tried(model, CONFIG)
    assert calls(lambda: defense(x)) == 4
    (gradient,) = torch.autograd.grad(defense(x).square().sum(), x)
    adapted = defense.adapt(x)
    (expected,) = torch.autograd.grad(defense.predict(x, adapted).square().sum(), x)
    torch.testing.assert_close(gradient, expected)
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize(
    "first",
    [
        (nn.Conv2d(3, 3, 1), Shift()),
        (nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU(inplace=True)),
        (Shift(), nn.Conv2d(3, 3, 1)),
    ],
)
def test_in_place_operations_do_not_change_the_logits(
    first: tuple[nn.Module, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    flat = nn.Sequential(
        *first, nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(3)
    )
    torch.manual_seed(0)
    model = flat.double().eval()
    model(images())
    monkeypatch.setattr(
        Shift, "in_place", False
    )  # the slow oracle uses the same input in every step
    expected = slow_dent.adapt_and_predict(model, CONFIG, images()).logits
    monkeypatch.undo()
    with torch.no_grad():
        torch.testing.assert_close(Dent(model, CONFIG)(images()), expected, atol=1e-10, rtol=1e-10)


def test_in_place_changes_of_module_outputs_do_not_change_the_logits() -> None:
    torch.manual_seed(0)
    model = Between(nn.Conv2d(3, 3, 1)).double().eval()
    expected = slow_dent.adapt_and_predict(model, CONFIG, images()).logits
    with torch.no_grad():
        torch.testing.assert_close(Dent(model, CONFIG)(images()), expected, atol=1e-10, rtol=1e-10)


def test_a_module_that_draws_random_numbers_is_computed_every_time() -> None:
    model = make(Noise(), Counted(3, 3, 3, padding=1))
    defense = tried(model, CONFIG)
    assert calls(lambda: defense(images())) == 10


def test_a_module_with_its_own_generator_is_computed_every_time() -> None:
    class Draws(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.source = torch.Generator().manual_seed(1)

        def forward(self, x: Tensor) -> Tensor:
            return x + torch.rand(x.shape, generator=self.source, dtype=x.dtype)

    defense = tried(make(Draws(), Counted(3, 3, 3, padding=1)), CONFIG)
    assert calls(lambda: defense(images())) == 10


@pytest.mark.parametrize("draw", [random.random, numpy.random.rand])
def test_a_module_that_draws_from_python_or_numpy_is_computed_every_time(
    draw: Callable[[], float],
) -> None:
    class Draws(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + float(draw())

    defense = tried(make(Draws(), Counted(3, 3, 3, padding=1)), CONFIG)
    assert calls(lambda: defense(images())) == 10


def test_a_module_that_changes_a_buffer_is_computed_every_time() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("runs", torch.zeros((), dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            self.runs += 1
            return x + self.runs

    defense = tried(make(Counts(), Counted(3, 3, 3, padding=1)), CONFIG)
    assert calls(lambda: defense(images())) == 10


def test_prefix_outputs_are_not_reused_for_another_batch() -> None:
    model, defense = make(), Dent(make(), CONFIG)
    prefix, inner = Prefix(), make()
    prefix.attach(inner, {inner.norm2})
    for seed in (0, 1, 0):
        x = torch.rand(2, 3, 5, 5, dtype=torch.float64, generator=torch.manual_seed(seed))
        with torch.no_grad():
            torch.testing.assert_close(inner(x), model(x))
            found = defense(x)
        torch.testing.assert_close(found, slow_dent.adapt_and_predict(model, CONFIG, x).logits)


def test_copies_are_freed_without_the_garbage_collector() -> None:
    inner, prefix = make(), Prefix()
    prefix.attach(inner, {inner.norm2})
    with torch.no_grad():
        inner(images())
    seen = weakref.ref(inner.conv2)
    gc.disable()
    try:
        del inner, prefix
        assert seen() is None
    finally:
        gc.enable()


class Encoder(nn.Module):
    """Stores an output that a later module uses, as in handwritten U-Nets."""

    def __init__(self, *, inside: bool) -> None:
        super().__init__()
        self.conv, self.norm, self.inside = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), inside
        self.skips: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.norm(self.conv(x))
        if self.inside:
            self.skips[:] = [found]
        else:
            self.skip = found
        return found.relu()


class Skipping(nn.Module):
    def __init__(self, *, inside: bool) -> None:
        super().__init__()
        self.encoder, self.middle = Encoder(inside=inside), nn.Conv2d(6, 6, 1)
        self.norm, self.head = nn.BatchNorm2d(6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norm(self.middle(self.encoder(x)))
        skip = self.encoder.skips[0] if self.encoder.inside else self.encoder.skip
        logits: Tensor = self.head((inner + skip).relu().mean((2, 3)))
        return logits


@pytest.mark.parametrize("inside", [False, True])
def test_a_module_that_stores_outputs_for_later_modules_runs_every_time(inside: bool) -> None:
    torch.manual_seed(0)
    model = Skipping(inside=inside).double().eval()
    x, other = torch.rand(2, 5, 3, 8, 8, dtype=torch.float64)
    defense = Dent(model, DentConfig(steps=2, lr=0.05, last_layers=1))
    expected = defense(x)
    model(other)
    torch.testing.assert_close(defense(x), expected)
    still = Dent(model, DentConfig(steps=1, lr=1e-12, last_layers=1))(x)
    torch.testing.assert_close(still, model(x))


class Tapped(nn.Module):
    """Uses an output from inside its encoder, which a hook or a patched forward stores."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.store: dict[str, Tensor] = {}
        self.encoder = nn.Sequential(Counted(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU())
        self.norm, self.head = nn.BatchNorm2d(6), nn.Linear(6, 4)
        tap = self.encoder[1]
        if how == "hook":
            tap.register_forward_hook(lambda module, given, output: self.keep(output))
        elif how == "pre-hook":
            tap.register_forward_pre_hook(lambda module, given: self.keep(given[0]))
        else:
            forward = tap.forward
            tap.forward = lambda x: self.keep(forward(x))

    def keep(self, output: Tensor) -> Tensor:
        self.store["skip"] = output
        return output

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norm(self.encoder(x))
        logits: Tensor = self.head((inner + self.store["skip"]).relu().mean((2, 3)))
        return logits


@pytest.mark.parametrize("how", ["hook", "pre-hook", "forward"])
def test_a_module_whose_patched_submodule_stores_outputs_runs_every_time(how: str) -> None:
    torch.manual_seed(0)
    model = Tapped(how).double().eval()
    x, other = torch.rand(2, 5, 3, 8, 8, dtype=torch.float64)
    defense = Dent(model, DentConfig(steps=2, lr=0.05, last_layers=1))
    expected = defense(x)
    model(other)
    torch.testing.assert_close(defense(x), expected)
    assert calls(lambda: defense(x)) == 3
    still = Dent(model, DentConfig(steps=1, lr=1e-12, last_layers=1))(x)
    torch.testing.assert_close(still, model(x))


def test_hooks_of_dent_itself_do_not_stop_the_cache() -> None:
    torch.manual_seed(0)
    block = nn.Sequential(Counted(3, 4, 1), nn.GroupNorm(2, 4))
    head = nn.Sequential(nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(3))
    model = nn.Sequential(block, head).double()
    model(images())
    defense = tried(model.eval(), CONFIG)
    assert calls(lambda: defense(images())) == 1


def agree(defense: Dent, adapted: Adaptation) -> None:
    """Check that the cache in an adaptation does not change a prediction."""
    x = images()
    without = defense.predict(x, replace(adapted, _prefix=None))
    assert torch.equal(defense.predict(x, adapted), without)


def test_the_cache_of_another_model_or_other_statistics_is_not_used() -> None:
    model, other = make(), make()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(2)
    adapted = tried(model, CONFIG).adapt(images())
    agree(tried(other, CONFIG), adapted)
    agree(tried(model, replace(CONFIG, statistics="test")), adapted)


def _in_place(model: Any) -> None:
    with torch.no_grad():
        model.first[0].weight.mul_(-1)


def _other_tensor(model: Any) -> None:
    model.first[0].weight = nn.Parameter(-model.first[0].weight.detach())


def _other_setting(model: Any) -> None:
    model.first[0].padding_mode = "reflect"


@pytest.mark.parametrize("change", [_in_place, _other_tensor, _other_setting])
def test_the_cache_is_not_used_once_the_model_changed(
    change: Callable[[Any], None],
) -> None:
    model = make()
    defense = tried(model, CONFIG)
    adapted = defense.adapt(images())
    change(model)
    agree(defense, adapted)


def test_the_cache_is_not_used_under_another_mixed_precision() -> None:
    defense = Dent(make(dtype=torch.float32), CONFIG)
    x = images().float()
    with torch.autocast("cpu", torch.bfloat16):
        adapted = defense.adapt(x)
    without = defense.predict(x, replace(adapted, _prefix=None))
    assert torch.equal(defense.predict(x, adapted), without)


def test_an_adaptation_does_not_keep_its_model_alive() -> None:
    model = make()
    adapted = tried(model, CONFIG).adapt(images())
    reference = weakref.ref(model)
    del model
    gc.collect()
    assert adapted._prefix is not None
    assert reference() is None
