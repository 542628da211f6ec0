"""Non-finite values are reported per sample and never count as a prediction."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from dent.adaptation.adaptation import Status
from dent.config import DentConfig
from dent.defenses.dent import Dent, _finite_rows
from tests.configurations import ALONE, CONFIGS, STATISTICS_ONLY, TEST, Around


@pytest.fixture
def x() -> Tensor:
    return torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(3))


def _overflowing(config: DentConfig) -> DentConfig:
    return replace(config, optimizer="sgd", beta3=None, lr=1e38, smoothing=None)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("config", [*CONFIGS, pytest.param(STATISTICS_ONLY, id="statistics-only")])
def test_non_finite_rows_do_not_affect_other_rows(
    config: DentConfig, bad: float, tiny_cnn: nn.Sequential, x: Tensor
) -> None:
    x[1, 0, 2, 3] = bad
    x[3, 2] = bad
    kept = torch.tensor([True, False, True, False, True])
    defense = Dent(tiny_cnn, config)
    adaptation = defense.adapt(x)
    wrong = Status.INPUT_NON_FINITE
    assert adaptation.status.tolist() == [Status.ADAPTED, wrong, Status.ADAPTED, wrong, 0]
    assert adaptation.entropy[:, kept].isfinite().all()
    assert adaptation.entropy[:, ~kept].isnan().all()
    logits = defense.predict(x, adaptation)
    assert torch.equal(logits[kept], defense(x[kept]))
    assert logits[~kept].isnan().all()
    assert torch.equal(defense(x)[kept], logits[kept])


@pytest.mark.parametrize("config", CONFIGS)
def test_a_batch_of_only_nan_gives_nan_logits(
    config: DentConfig, tiny_cnn: nn.Sequential, x: Tensor
) -> None:
    defense = Dent(tiny_cnn, config)
    adaptation = defense.adapt(x * torch.nan)
    assert adaptation.status.eq(Status.INPUT_NON_FINITE).all()
    logits = defense.predict(x * torch.nan, adaptation)
    assert logits.shape == (5, 10)
    assert logits.isnan().all()
    assert defense(x * torch.nan).isnan().all()


@pytest.mark.parametrize("config", CONFIGS)
def test_rows_with_plus_infinity_or_only_minus_infinity_become_nan(
    config: DentConfig, tiny_cnn: nn.Sequential, x: Tensor
) -> None:
    class Overflowing(Around):
        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.model(x)
            offset = torch.zeros_like(logits)
            offset[1, 3], offset[2, 4] = torch.inf, -torch.inf
            offset[4] = -torch.inf
            return logits + offset

    # A model masks a class with minus infinity; plus infinity would win every argmax.
    logits = Dent(Overflowing(tiny_cnn), replace(config, steps=0))(x)
    assert logits[1].isnan().all()
    assert logits[4].isnan().all()
    assert logits[2].isneginf().tolist() == [False] * 4 + [True] + [False] * 5
    assert not logits[[0, 2, 3]].isnan().any()


@pytest.mark.parametrize("config", CONFIGS)
def test_steps_that_overflow_give_the_logits_without_steps(
    config: DentConfig, tiny_cnn: nn.Sequential, x: Tensor
) -> None:
    config = _overflowing(config)
    defense = Dent(tiny_cnn, config)
    adaptation = defense.adapt(x)
    assert not adaptation.status.eq(Status.ADAPTED).any()
    assert adaptation.status.eq(Status.STEP_NON_FINITE).any()
    if config == _overflowing(ALONE):
        assert adaptation.status.eq(Status.STEP_NON_FINITE).all()
    assert all(value.isfinite().all() for value in adaptation.parameters.values())
    expected = Dent(tiny_cnn, replace(config, steps=0))(x)
    logits = defense.predict(x, adaptation)
    assert logits.isfinite().all()
    torch.testing.assert_close(logits, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("dtype", "huge"), [(torch.float32, 3e38), (torch.float16, 6e4)], ids=["float32", "float16"]
)
@pytest.mark.parametrize("config", CONFIGS)
def test_only_the_overflowing_sample_has_status_step_non_finite(
    config: DentConfig, dtype: torch.dtype, huge: float, tiny_cnn: nn.Sequential, x: Tensor
) -> None:
    tiny_cnn, x = tiny_cnn.to(dtype), x.to(dtype)
    x[2] = huge
    x[2, :, ::2] = -huge
    config = replace(config, statistics="train", smoothing=None)
    defense = Dent(tiny_cnn, config)
    adaptation = defense.adapt(x)
    others = torch.arange(5) != 2
    neighbours = Status.ADAPTED if config.granularity == "sample" else Status.REVERTED
    if config.objective == "information-maximization":
        neighbours = Status.REVERTED
    assert adaptation.status[2] == Status.STEP_NON_FINITE
    assert adaptation.status[others].eq(neighbours).all()
    assert all(value.isfinite().all() for value in adaptation.parameters.values())
    logits = defense.predict(x, adaptation)
    assert logits[others].isfinite().all()
    assert logits[2].isnan().all()
    if config == ALONE:
        assert torch.equal(logits[others], defense(x[others]))
    elif neighbours == Status.REVERTED:
        static = Dent(tiny_cnn, replace(config, steps=0))(x)
        assert torch.equal(logits[others], static[others])


class _Steep(nn.Module):
    """A norm layer whose logits are saturated, without a gradient, if the first pixel is 1."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(2)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.norm(x) * torch.where(x[:, :1] == 1, 1e4, 1.0)
        return logits


ENORMOUS = replace(ALONE, lr=1e308)


def test_sample_wise_only_the_sample_whose_step_overflows_is_reverted() -> None:
    x = torch.tensor([[1.0, 0.0], [0.3, 0.2], [1.0, 0.5]], dtype=torch.float64)
    config = replace(ENORMOUS, steps=10)  # enough for momentum to overflow for one sample
    defense = Dent(_Steep().double(), config)
    adaptation = defense.adapt(x)
    wrong = Status.STEP_NON_FINITE
    assert adaptation.status.tolist() == [Status.ADAPTED, wrong, Status.ADAPTED]
    logits = defense.predict(x, adaptation)
    assert torch.equal(logits, _Steep().double()(x))
    assert logits.isfinite().all()


def test_batch_wise_an_overflowing_step_marks_and_reverts_every_sample() -> None:
    x = torch.tensor([[0.3, 0.2]] * 12 + [[1.0, 0.0]], dtype=torch.float64)
    config = replace(ENORMOUS, steps=1, granularity="batch")
    adaptation = Dent(_Steep().double(), config).adapt(x)
    assert adaptation.entropy.isfinite().all()
    assert adaptation.status.eq(Status.STEP_NON_FINITE).all()
    assert torch.equal(adaptation.parameters["norm.weight"], torch.ones(2, dtype=torch.float64))


def test_an_overflow_after_some_steps_returns_to_the_trained_parameters() -> None:
    """It does not return to the last finite ones: the logits are as if there were no steps."""

    class Cliff(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(2)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.norm(x)
            return torch.where(self.norm.weight[0] > 1.15, torch.nan, logits)

    x = torch.tensor([[0.3, 0.2], [0.1, 0.6]])
    model, config = Cliff(), DentConfig(steps=5, lr=0.1)
    assert Dent(model, replace(config, steps=1)).adapt(x).status.eq(Status.ADAPTED).all()
    adaptation = Dent(model, config).adapt(x)
    assert adaptation.status.eq(Status.STEP_NON_FINITE).all()
    assert torch.equal(adaptation.parameters["norm.weight"], torch.ones(2))
    assert torch.equal(Dent(model, config).predict(x, adaptation), model(x))


@pytest.mark.parametrize("config", CONFIGS)
def test_a_masked_class_does_not_prevent_adaptation(
    config: DentConfig, tiny_cnn: nn.Sequential, x: Tensor
) -> None:
    class Masked(Around):
        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.model(x)
            return logits.index_fill(1, torch.tensor([3]), -torch.inf)

    defense = Dent(Masked(tiny_cnn), config)
    adaptation = defense.adapt(x)
    assert adaptation.status.eq(Status.ADAPTED).all()
    logits = defense.predict(x, adaptation)
    assert logits[:, 3].isneginf().all()
    assert logits[:, :3].isfinite().all()


def test_a_batch_of_only_nan_under_test_statistics_gives_nan_logits() -> None:
    layer = nn.BatchNorm1d(4, track_running_stats=False)
    defense = Dent(nn.Sequential(layer, nn.Linear(4, 3)), replace(TEST, smoothing=None))
    logits = defense(torch.full((5, 4), torch.nan))
    assert logits.shape == (5, 3)
    assert logits.isnan().all()


def test_status_names_have_fixed_numbers() -> None:
    assert [status.value for status in Status] == [0, 1, 2, 3]
    names = ["ADAPTED", "INPUT_NON_FINITE", "STEP_NON_FINITE", "REVERTED"]
    assert [status.name for status in Status] == names


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(6, 3, 4, 4), (6, 37), (6, 2, 2, 2, 2)])
def test_finite_rows_returns_the_finite_rows_and_their_pixel_range(
    dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    clean = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert _finite_rows(clean) == (None, (float(clean.min()), float(clean.max())))
    for bad in (torch.nan, torch.inf, -torch.inf):
        for rows in ([0], [5], [1, 2, 4]):
            x = clean.clone()
            for row in rows:
                x[row].view(-1)[row] = bad
            finite, pixels = _finite_rows(x)
            assert finite is not None
            assert finite.tolist() == [row not in rows for row in range(6)]
            kept = clean[finite]
            assert pixels == (float(kept.min()), float(kept.max()))
    finite, pixels = _finite_rows(clean * torch.nan)
    assert finite is not None
    assert not finite.any()
    assert pixels == (0.0, 0.0)
