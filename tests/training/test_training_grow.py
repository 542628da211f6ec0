"""A grown net has the logits of the small net, and training makes its copied channels differ."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from dent import models
from dent.errors import ConfigError
from dent.models.residual import Block, ResNet
from dent.training.grow import grow
from tests.models.test_models_residual import with_lived_in_statistics


@settings(max_examples=20, deadline=None)
@given(
    depth=st.sampled_from([8, 14]),
    width=st.integers(2, 3),
    deeper=st.integers(0, 2),
    wider=st.integers(0, 2),
    classes=st.integers(2, 5),
    size=st.integers(8, 13),
    seed=st.integers(0, 99),
)
def test_a_grown_net_has_the_logits_of_the_small_net(
    depth: int, width: int, deeper: int, wider: int, classes: int, size: int, seed: int
) -> None:
    torch.manual_seed(seed)
    small = models.resnet(f"resnet-{depth}-{width}", classes, mean=(0.1, 0.2, 0.3)).double()
    with_lived_in_statistics(small)
    large = grow(small, f"resnet-{depth + 6 * deeper}-{width + wider}")
    assert (large.depth, large.width) == (depth + 6 * deeper, width + wider)
    x = torch.rand(3, 3, size, size, dtype=torch.float64)
    torch.testing.assert_close(large(x), small(x), rtol=0, atol=1e-10)


def test_training_makes_the_copies_of_a_channel_differ() -> None:
    torch.manual_seed(0)
    small = models.load("resnet-14-2-linf")
    assert isinstance(small, ResNet)
    large = grow(small, "resnet-20-4").train()
    optimizer = torch.optim.SGD(large.parameters(), lr=0.1)
    for _ in range(3):
        loss = F.cross_entropy(large(torch.rand(8, 3, 16, 16)), torch.randint(10, (8,)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for stage in large.stages:
        added, first_block = stage[-1], stage[0]
        assert isinstance(added, Block)
        assert isinstance(first_block, Block)
        assert added.conv2.weight.abs().sum() > 0
        inner = first_block.norm2.weight
        first, second = inner[: len(inner) // 2], inner[len(inner) // 2 :]
        assert (first != second).float().mean() > 0.9


@pytest.mark.parametrize(
    ("small", "large"),
    [("resnet-14-2", "resnet-8-4"), ("resnet-14-4", "resnet-14-2"), ("resnet-8-1", "resnet-14-2")],
)
def test_growing_into_an_incompatible_architecture_is_refused(small: str, large: str) -> None:
    with pytest.raises(ConfigError, match=f"{small} cannot grow into {large}: expected"):
        grow(models.resnet(small), large)


def test_the_grow_command_writes_weights_with_the_same_logits(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dent.training.grow"]
    target = tmp_path / "grown.safetensors"
    subprocess.run([*command, "resnet-14-2-linf", "resnet-14-3", str(target)], check=True)
    x = torch.rand(4, 3, 32, 32)
    large = models.load("resnet-14-3", weights=target)
    torch.testing.assert_close(large(x), models.load("resnet-14-2-linf")(x), rtol=1e-4, atol=1e-4)
    wrong = subprocess.run(
        [*command, "resnet-14-2-linf"], capture_output=True, text=True, check=False
    )
    assert wrong.returncode == 1
    assert re.search("python -m dent.training.grow resnet", wrong.stderr)


@pytest.mark.parametrize("target", ["grown.pt", ".", "grown"])
def test_the_grow_command_refuses_a_file_of_another_kind(target: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dent.training.grow", "resnet-14-2-linf", "resnet-14-3"]
    wrong = subprocess.run(
        [*command, target], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert wrong.returncode == 1
    expected = f"the grown weights need a file name that ends in .safetensors, got {target!r}\n"
    assert wrong.stderr == expected
    assert not any(tmp_path.iterdir())
