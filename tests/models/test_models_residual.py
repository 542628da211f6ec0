import re

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dent import models
from dent.errors import ConfigError, InputError, UnknownNameError
from dent.models.residual import is_member, parse


def published_architecture(state: dict[str, Tensor], x: Tensor, n: int) -> Tensor:
    """Oracle: the net as the papers describe it, computed from the state dict."""

    def norm(x: Tensor, name: str) -> Tensor:
        shape = (1, -1, 1, 1)
        mean, var, scale, shift = (
            state[f"{name}.{part}"].view(shape)
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / torch.sqrt(var + 1e-5) * scale + shift

    x = (x - state["normalize.mean"]) / state["normalize.std"]
    x = F.conv2d(x, state["stem.weight"], padding=1)
    for stage in range(3):
        for block in range(n):
            at = f"stages.{stage}.{block}"
            stride = 2 if stage > 0 and block == 0 else 1
            out = F.conv2d(
                norm(x, f"{at}.norm1").clamp(min=0), state[f"{at}.conv1.weight"], None, stride, 1
            )
            out = F.conv2d(
                norm(out, f"{at}.norm2").clamp(min=0), state[f"{at}.conv2.weight"], padding=1
            )
            if stride == 2:
                x = (
                    x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]
                ) / 4
            x = (
                torch.cat([x, x.new_zeros(len(x), out.shape[1] - x.shape[1], *x.shape[2:])], 1)
                + out
            )
    x = norm(x, "norm").clamp(min=0).flatten(2).mean(2)
    return x @ state["head.weight"].T + state["head.bias"]


def with_lived_in_statistics(model: nn.Module) -> nn.Module:
    """Randomize every BatchNorm layer, since fresh ones are identities and hide errors."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            with torch.no_grad():
                for name, tensor in module.state_dict().items():
                    if name in ("running_mean", "bias"):
                        tensor.normal_(std=0.3)
                    elif name in ("running_var", "weight"):
                        tensor.uniform_(0.5, 1.5)
    return model.eval()


@pytest.mark.parametrize("name", ["resnet-8-1", "resnet-14-2", "resnet-20-3"])
def test_logits_match_the_published_architecture(name: str) -> None:
    torch.manual_seed(0)
    model = with_lived_in_statistics(models.resnet(name)).double()
    x = torch.rand(3, 3, 16, 16, dtype=torch.float64)
    n = (parse(name)[0] - 2) // 6
    torch.testing.assert_close(model(x), published_architecture(model.state_dict(), x, n))


def parameters_by_hand(depth: int, width: int, classes: int) -> int:
    """Oracle: the parameter count, with two parameters per normalized channel (He et al.)."""
    n, last, total = (depth - 2) // 6, 16, 3 * 16 * 9
    for channels in (16 * width, 32 * width, 64 * width):
        total += 9 * last * channels + 2 * last  # the block that changes the width
        total += 9 * channels * channels * (2 * n - 1) + 2 * channels * (2 * n - 1)
        last = channels
    return total + 2 * last + last * classes + classes


@settings(max_examples=15, deadline=None)
@given(
    n=st.integers(1, 3),
    width=st.integers(1, 3),
    classes=st.integers(2, 12),
    batch=st.integers(0, 3),
    height=st.integers(1, 11),
    side=st.integers(1, 11),
)
def test_every_family_member_maps_images_of_any_size_to_logits(
    n: int, width: int, classes: int, batch: int, height: int, side: int
) -> None:
    depth = 6 * n + 2
    model = models.resnet(f"resnet-{depth}-{width}", classes).eval()
    assert model(torch.rand(batch, 3, height, side)).shape == (batch, classes)
    assert sum(p.numel() for p in model.parameters()) == parameters_by_hand(depth, width, classes)
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len(layers) == depth
    assert parse(f"resnet-{depth}-{width}") == (model.depth, model.width) == (depth, width)


@pytest.mark.parametrize(("name", "count"), [("resnet-26-4", 5_807_066), ("resnet-14-2", 680_922)])
def test_parameter_counts_match_the_hand_count_and_the_known_values(name: str, count: int) -> None:
    depth, width = parse(name)
    assert parameters_by_hand(depth, width, 10) == count
    assert sum(p.numel() for p in models.resnet(name).parameters()) == count


def test_resnet_32_10_of_the_paper_has_the_expected_parameter_count() -> None:
    with torch.device("meta"):
        model = models.resnet("resnet-32-10")
    assert sum(p.numel() for p in model.parameters()) == parameters_by_hand(32, 10, 10)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "resnet-25-4",
            "6n+2 (8, 14, 20, 26, ..., 1202), got 25; nearest: resnet-20-4 or resnet-26-4",
        ),
        ("resnet-2-1", "nearest: resnet-8-1 or resnet-14-1"),
        ("resnet-9999-1", "nearest: resnet-1202-1"),
        ("resnet-26-0", "width multiplier must be from 1 to 32, got 0"),
        ("resnet-26-400", "width multiplier must be from 1 to 32, got 400"),
        ("resnet-026-4", "is written 'resnet-26-4'"),
        ("resnet-26", "expected a name resnet-{depth}-{width}"),
        ("ResNet-26-4", "expected a name resnet-{depth}-{width}"),
        ("resnet-26-4 ", "expected a name resnet-{depth}-{width}"),
        ("resnet-٢٦-4", "expected a name resnet-{depth}-{width}"),
    ],
)
def test_error_for_an_invalid_resnet_name_says_what_is_valid(name: str, said: str) -> None:
    with pytest.raises(UnknownNameError, match=re.escape(said)):
        models.resnet(name)


def test_is_member_accepts_family_names_and_rejects_others() -> None:
    assert is_member("resnet-26-4")
    assert is_member("resnet-25-4")  # invalid, but it gets the error message of the family
    assert not is_member("resnet18-nominal")
    assert not is_member("resnet-14-2-linf")


def test_fewer_than_two_classes_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least 2, got 1"):
        models.resnet("resnet-8-1", 1)


def test_normalization_is_part_of_the_model_and_of_its_weights() -> None:
    model = models.resnet("resnet-8-1", mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.125))
    x = torch.rand(2, 3, 4, 4)
    expected = torch.stack(
        [(x[:, 0] - 0.1) / 0.5, (x[:, 1] - 0.2) / 0.25, (x[:, 2] - 0.3) / 0.125], 1
    )
    torch.testing.assert_close(model.normalize(x), expected)
    other = models.resnet("resnet-8-1")
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.normalize(x), model.normalize(x))
    assert "0.125" in repr(model.normalize)


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((2, 32, 32, 3), r"\(2, 32, 32, 3\); the channels come last.*permute\(0, 3, 1, 2\)"),
        ((3, 32, 32), r"add the batch dimension"),
        ((2, 1, 32, 32), r"\(N, 3, H, W\), got \(2, 1, 32, 32\)"),
        ((), r"got \(\)"),
    ],
)
def test_images_of_a_wrong_shape_are_refused(shape: tuple[int, ...], said: str) -> None:
    with pytest.raises(InputError, match=said):
        models.resnet("resnet-8-1")(torch.rand(shape))


@pytest.mark.parametrize(("mean", "std"), [((0.5,), (0.5, 0.5)), ((0.5,), (0.0,)), ((), ())])
def test_invalid_normalization_is_refused(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="one mean and one standard deviation above zero"):
        models.Normalize(mean, std)


def test_channels_last_and_bfloat16_give_close_logits() -> None:
    torch.manual_seed(0)
    model = with_lived_in_statistics(models.resnet("resnet-8-1"))
    x = torch.rand(2, 3, 16, 16)
    expected = model(x)
    torch.testing.assert_close(model(x.to(memory_format=torch.channels_last)), expected)
    rough = model.to(torch.bfloat16)(x.to(torch.bfloat16))
    assert rough.dtype == torch.bfloat16
    torch.testing.assert_close(rough.float(), expected, atol=0.1, rtol=0.1)
