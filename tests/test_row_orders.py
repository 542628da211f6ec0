"""Sample-wise adaptation of models that fold tokens or windows into the batch."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dent import DENT_PLUS, CompileWarning, Dent, DentConfig, Performance, UnsupportedModelError
from dent.adaptation import adapted_model, norm
from tests import slow_dent
from tests.configurations import ALONE

SAMPLE = replace(DENT_PLUS, steps=3)
CONFIGS = [
    pytest.param(ALONE, id="alone"),
    pytest.param(SAMPLE, id="dent-plus"),
    pytest.param(replace(SAMPLE, last_layers=2), id="last-layers"),
]
NORMS: dict[str, Callable[[], nn.Module]] = {
    "batch-norm": lambda: nn.BatchNorm1d(4),
    "layer-norm": lambda: nn.LayerNorm(4),
    "group-norm": lambda: nn.GroupNorm(2, 4),
}

Fold = Callable[[Tensor], Tensor]
"""From tokens (N, k, C) to rows (k * N, C)."""


def major(tokens: Tensor) -> Tensor:
    return tokens.flatten(0, 1)


def minor(tokens: Tensor) -> Tensor:
    return tokens.transpose(0, 1).flatten(0, 1)


def between(tokens: Tensor) -> Tensor:
    """Give neither order: the rows of a sample lie in two places, two at each."""
    return tokens.unflatten(1, (2, -1)).transpose(0, 1).flatten(0, 2)


class Folding(nn.Module):
    """Normalizes tokens as rows of the batch, then their mean."""

    def __init__(self, fold: Fold, make: Callable[[], nn.Module] = NORMS["batch-norm"]) -> None:
        super().__init__()
        self.fold = fold
        self.embed = nn.Conv2d(3, 4, 2, 2)
        self.first, self.second, self.last = make(), make(), make()
        self.mix = nn.Linear(4, 4)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        rows = self.first(self.fold(tokens))
        rows = self.second(F.gelu(self.mix(rows)))
        place = self.fold(
            torch.arange(tokens.shape[0] * tokens.shape[1]).reshape(*tokens.shape[:2], 1)
        )
        back = torch.empty_like(rows).index_copy(0, place.flatten(), rows)
        logits: Tensor = self.head(self.last(back.reshape(tokens.shape).mean(1)))
        return 3 * logits


def make(fold: Fold, kind: str = "batch-norm", model: type[Folding] = Folding) -> Folding:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        built = model(fold, NORMS[kind]).double().eval()
        for name, tensor in (*built.named_parameters(), *built.named_buffers()):
            if tensor.is_floating_point() and any(
                part in name for part in ("first", "second", "last")
            ):
                tensor.data.uniform_(0.5, 1.5)
    return built


def images(samples: int, size: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(samples)
    return torch.rand(samples, 3, size, size, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("fold", [major, minor])
@pytest.mark.parametrize("kind", NORMS)
def test_folded_rows_get_the_parameters_of_their_sample(
    kind: str, fold: Fold, config: DentConfig
) -> None:
    """Four tokens and four samples: the shapes do not tell the order."""
    model, x = make(fold, kind), images(4)
    expected = slow_dent.adapt_and_predict(model, config, x)
    defense = Dent(model, config)
    adaptation = defense.adapt(x)
    torch.testing.assert_close(defense.predict(x, adaptation), expected.logits, rtol=0, atol=1e-9)
    torch.testing.assert_close(adaptation.entropy, expected.entropy, rtol=0, atol=1e-9)
    for name, value in adaptation.parameters.items():
        torch.testing.assert_close(value, expected.parameters[name], rtol=0, atol=1e-9)


@pytest.mark.parametrize("fold", [major, minor])
@settings(max_examples=4)
@given(samples=st.integers(2, 9), size=st.sampled_from([2, 4, 6]))
def test_each_sample_is_predicted_as_alone(fold: Fold, samples: int, size: int) -> None:
    """One defense meets the batch, then a smaller and a larger one, of another image size."""
    defense, other = Dent(make(fold), ALONE), Dent(make(fold), ALONE)
    for count, extent in ((samples, size), (samples - 1, size), (samples + 1, 8 - size)):
        x = images(count, extent)
        alone = torch.cat([other(sample) for sample in x.split(1)])
        torch.testing.assert_close(defense(x), alone, rtol=0, atol=1e-9)


@pytest.mark.parametrize("fold", [major, minor])
def test_a_batch_with_a_non_finite_sample_is_predicted_as_without_it(fold: Fold) -> None:
    x = images(5)
    x[2, 0, 0, 0] = torch.inf
    rest = [0, 1, 3, 4]
    defense = Dent(make(fold), ALONE)
    logits = defense(x)
    assert logits[2].isnan().all()
    torch.testing.assert_close(logits[rest], defense(x[rest]), rtol=0, atol=0)


@pytest.mark.parametrize("fold", [major, minor])
def test_the_exact_gradient_of_a_batch_is_that_of_each_sample_alone(fold: Fold) -> None:
    defense, x = Dent(make(fold), ALONE), images(4)

    def gradient(x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        logits = defense.predict(x, defense.adapt(x, differentiable=True))
        return torch.autograd.grad(logits.square().sum(), x)[0]

    alone = torch.cat([gradient(sample) for sample in x.split(1)])
    torch.testing.assert_close(gradient(x), alone, rtol=0, atol=1e-9)


@pytest.mark.parametrize("statistics", ["test", "moving"])
def test_other_statistics_keep_the_rows_of_a_sample_together(statistics: Any) -> None:
    """The orders describe the same network, so they may not change its predictions."""
    config = replace(SAMPLE, statistics=statistics)
    x = images(4)
    torch.testing.assert_close(
        Dent(make(major), config)(x), Dent(make(minor), config)(x), rtol=0, atol=1e-9
    )


def test_a_registered_kind_may_fold_too(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.shift = nn.Parameter(torch.ones(4)), nn.Parameter(torch.zeros(4))

        def forward(self, x: Tensor) -> Tensor:
            return F.layer_norm(x, (4,)) * self.scale + self.shift

    monkeypatch.setattr(norm, "_REGISTERED", {})
    norm.register_norm(Own, scale="scale", shift="shift", channels="last")
    monkeypatch.setitem(NORMS, "own", Own)
    x = images(4)
    defense = Dent(make(minor, "own"), ALONE)
    alone = torch.cat([defense(sample) for sample in x.split(1)])
    torch.testing.assert_close(defense(x), alone, rtol=0, atol=1e-9)


def test_a_model_may_fold_only_large_images() -> None:
    class Sometimes(Folding):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(F.interpolate(x, 2) if x.shape[-1] == 4 else x)

    defense = Dent(make(minor, model=Sometimes), ALONE)
    for size in (4, 6):
        x = images(3, size)
        alone = torch.cat([defense(sample) for sample in x.split(1)])
        torch.testing.assert_close(defense(x), alone, rtol=0, atol=1e-9)


class Mixing(Folding):
    """Takes the mean of the samples into each token."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + x.mean(0))


class Clean(Folding):
    """Hides NaN."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.nan_to_num())


class Careful(Folding):
    """Refuses NaN."""

    def forward(self, x: Tensor) -> Tensor:
        if x.isnan().any():
            raise ValueError("NaN")
        return super().forward(x)


class Sorted(Folding):
    """Orders the rows by their values, over all samples."""

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        order = tokens.flatten(0, 1)[:, 0].argsort()
        rows = self.second(self.first(tokens.flatten(0, 1)[order]))
        back = torch.empty_like(rows).index_copy(0, order, rows)
        logits: Tensor = self.head(back.reshape(tokens.shape).mean(1))
        return logits


class BothOrders(Folding):
    """Calls a layer with rows in one order, and then in the other."""

    def forward(self, x: Tensor) -> Tensor:
        rows = self.first(major(self.embed(x).flatten(2).transpose(1, 2)))
        other = self.first(minor(rows.unflatten(0, (len(x), -1))))
        logits: Tensor = self.head(other.unflatten(0, (-1, len(x))).mean(0))
        return logits


class Constant(Folding):
    """Normalizes rows that depend on no sample."""

    def forward(self, x: Tensor) -> Tensor:
        constant = self.first(torch.ones(2 * len(x), 4, dtype=x.dtype)).unflatten(0, (len(x), 2))
        return super().forward(x) + self.head(constant.mean(1))


@pytest.mark.parametrize(
    ("fold", "model"),
    [
        (between, Folding),
        (major, Mixing),
        (major, Clean),
        (minor, Careful),
        (major, Sorted),
        (major, BothOrders),
        (minor, Constant),
    ],
)
@pytest.mark.parametrize("samples", [3, 4])
def test_rows_that_are_not_of_one_sample_in_a_known_order_are_refused(
    fold: Fold, model: type[Folding], samples: int
) -> None:
    defense = Dent(make(fold, model=model), SAMPLE)
    for _ in range(2):
        with pytest.raises(UnsupportedModelError, match=r"first dimension is not the batch.*order"):
            defense(images(samples))
    assert (
        Dent(make(fold, model=model), replace(SAMPLE, granularity="batch"))(images(samples))
        .isfinite()
        .all()
    )


def test_a_layer_within_vmap_is_refused_for_samples_and_adapts_for_batches() -> None:
    class Vmapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.head = nn.LayerNorm(6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return torch.vmap(lambda row: self.head(self.norm(row[None]))[0])(x)

    torch.manual_seed(0)
    model, x = Vmapped(), torch.rand(4, 6)
    plain = nn.Sequential(model.norm, model.head)
    batch_wise = DentConfig(steps=2, lr=0.1)
    assert torch.allclose(Dent(model, batch_wise)(x), Dent(plain, batch_wise)(x), atol=1e-6)
    with pytest.raises(UnsupportedModelError, match=r"no torch\.vmap"):
        Dent(model, SAMPLE)(x)


def test_samples_in_another_order_are_refused_where_rows_are_folded() -> None:
    class Rolled(Folding):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).roll(-1, 0)

    model = make(major, model=Rolled)
    model.last.register_forward_pre_hook(lambda _, args: (args[0].roll(1, 0),))
    with pytest.raises(UnsupportedModelError, match=r"layer last .*not the samples in their order"):
        Dent(model, SAMPLE)(images(4))


@pytest.mark.parametrize("samples", [2, 12])
def test_a_sequence_whose_length_is_a_multiple_of_the_batch_is_refused(samples: int) -> None:
    class SequenceFirst(Folding):
        def forward(self, x: Tensor) -> Tensor:
            sequence = self.first(self.embed(x).flatten(2).permute(2, 1, 0))
            logits: Tensor = self.head(sequence.mean(0).T)
            return logits

    model = make(major, "group-norm", model=SequenceFirst)
    with pytest.raises(UnsupportedModelError, match="first dimension is not the batch"):
        Dent(model, SAMPLE)(images(samples, 8 if samples != 12 else 12))


def _forwards(model: nn.Module, run: Callable[[], object]) -> int:
    seen: list[int] = []
    handle = model.register_forward_hook(lambda _, args, __: seen.append(len(args[0])))
    run()
    handle.remove()
    return len(seen)


def test_each_batch_shape_is_probed_once_and_other_models_never() -> None:
    model, x = make(minor), images(9)
    defense = Dent(model, ALONE)
    defense(x)
    forwards = ALONE.steps + 1
    assert _forwards(model, lambda: defense(x)) == forwards
    assert _forwards(model, lambda: defense(images(6))) == forwards + 2 * 3
    assert _forwards(model, lambda: defense(images(6))) == forwards
    assert _forwards(model, lambda: defense.with_steps(1)(x)) == 2
    plain = nn.Sequential(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(3))
    plain.double()(x)
    defense = Dent(plain, ALONE)
    defense(x)
    assert _forwards(plain, lambda: defense(images(6))) == forwards


def test_a_probe_leaves_random_numbers_and_inference_mode_alone() -> None:
    class Drawing(Folding):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + 1e-3 * torch.rand_like(x))

    defense, x = Dent(make(major, model=Drawing), ALONE), images(4)
    adaptation = defense.adapt(x)
    torch.manual_seed(5)
    expected = defense.predict(x, adaptation)
    after = torch.rand(1)
    again = Dent(make(major, model=Drawing), ALONE)
    with torch.inference_mode():
        torch.manual_seed(5)
        found = again.predict(x, adaptation)
        assert torch.equal(torch.rand(1), after)
        assert torch.equal(found, expected)
        assert again(x.clone()).isfinite().all()


def test_a_compiled_defense_gives_the_same_predictions(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = torch.compile(
        adapted_model._call, fullgraph=True, dynamic=False, backend="aot_eager"
    )
    monkeypatch.setattr(adapted_model, "_compiled", lambda: compiled)
    defense = Dent(make(minor), ALONE, Performance(compile=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error", CompileWarning)
        for samples in (4, 3):
            x = images(samples)
            torch.testing.assert_close(defense(x), Dent(make(minor), ALONE)(x), rtol=0, atol=1e-9)
    torch._dynamo.reset()
