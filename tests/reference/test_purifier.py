"""Tests of the purifier against its formula, and of the bundled denoiser on real images."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dent.board.submission import submission_of
from dent.data import load
from dent.defenses import Denoiser, Purifier, describe
from dent.errors import ConfigError, InputError
from dent.models import load as load_model


def test_purifier_subtracts_the_estimate_of_its_copy_of_the_denoiser(
    small: nn.Sequential, batch: Tensor
) -> None:
    denoiser = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.Dropout(0.5)).double()
    defense = Purifier(small, denoiser)
    expected = small.eval()(batch - denoiser.eval()(batch))
    torch.testing.assert_close(defense.train()(batch), expected)
    assert torch.autograd.gradcheck(defense, batch[:2].clone().requires_grad_())
    # The caller's denoiser is unchanged.
    assert all(weight.requires_grad for weight in denoiser.parameters())
    before = describe(defense)["settings"]
    with torch.no_grad():
        denoiser[0].bias.add_(1)
    assert describe(defense)["settings"] == before
    assert describe(Purifier(small, denoiser))["settings"] != before
    torch.testing.assert_close(defense(batch), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_denoiser_computes_in_the_precision_of_its_weights(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 5)).to(dtype)
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    defense = Purifier(model)
    noise = defense.denoiser(x.float()).to(dtype)
    assert torch.equal(defense(x), model(x - noise))
    with pytest.raises(InputError, match=r"denoiser of purifier .* shape \(2, 1, 8, 8\)"):
        defense(x[:, :1])


def test_bundled_denoiser_undoes_part_of_a_gradient_sign_step() -> None:
    model = load_model("resnet-14-2-linf")
    x, y = load("cifar10-sample").batch(range(64))
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(leaf), y), leaf)
    attacked = (x + 8 / 255 * gradient.sign()).clamp(0, 1)
    with torch.no_grad():
        clean = model(x)
        purified = Purifier(model)(attacked)
        moved = model(attacked) - clean
        assert float((purified - clean).abs().mean()) < float(moved.abs().mean())
        right = [int((logits.argmax(1) == y).sum()) for logits in (Purifier(model)(x), clean)]
        assert right[0] >= right[1] - 4


def test_output_of_the_denoiser_has_the_shape_of_its_input() -> None:
    x = torch.rand(2, 1, 9, 7)
    assert Denoiser(channels=1, width=4)(x).shape == x.shape


def test_board_row_of_a_defense_of_this_package_needs_no_repository() -> None:
    fields = {
        "name": "it",
        "track": "cifar10-linf-8/255-v1",
        "contact": "me",
        "license": "MIT",
        "evaluated_by": "me",
    }
    for factory in ("tte", "dent.defenses:Purifier"):
        assert submission_of({**fields, "factory": factory}, "row.json").factory == factory
    for factory in ("mine:Purifier", "dental:Purifier"):
        with pytest.raises(ConfigError, match="give the repository"):
            submission_of({**fields, "factory": factory}, "row.json")
