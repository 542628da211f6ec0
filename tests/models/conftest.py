"""Fixtures and helpers for the tests of the model sources."""

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from dent import models


@pytest.fixture(autouse=True)
def models_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Keep every test away from the user's own weights."""
    monkeypatch.setenv("DENT_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "models"


def scrambled(model: nn.Module, seed: int = 0) -> nn.Module:
    """Replace all weights and statistics by random values, and return the model in eval mode.

    The scales keep the activations of deep nets from vanishing. Logits that do not depend on the
    image would agree with every oracle.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            fixed = name in ("mu", "sigma") or "normalize" in name
            if not value.is_floating_point() or value.numel() < 2 or fixed:
                continue
            spread = torch.rand(value.shape, generator=generator)
            if value.ndim > 1:
                value.copy_((spread - 0.5) * (24 / value[0].numel()) ** 0.5)  # He et al., 2015
            elif name.endswith(("weight", "var")):
                value.copy_(spread + 0.5)
            else:
                value.copy_((spread - 0.5) / 4)
    return model.eval()


def lay_shipped(folder: Path, name: str, /, **changes: Any) -> tuple[nn.Module, dict[str, Any]]:
    """Write half-precision weights and their card as `dent train` does; return both."""
    folder.mkdir(parents=True, exist_ok=True)
    model = scrambled(models.resnet("resnet-8-1", num_classes=4))
    file = folder / f"{name}.safetensors"
    half = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    safetensors.torch.save_file(half, file)
    content = file.read_bytes()
    card: dict[str, Any] = {
        "schema": 1,
        "name": name,
        "architecture": "resnet-8-1",
        "dataset": "cifar10",
        "num_classes": 4,
        "mean": list(models.CIFAR10_MEAN),
        "std": list(models.CIFAR10_STD),
        "threat": "linf 8/255",
        "recipe": {"name": "fast"},
        "weights": {
            "file": file.name,
            "sha256": sha256(content).hexdigest(),
            "bytes": len(content),
            "dtype": "float16",
        },
        "accuracies": [
            {
                "correct": 73,
                "total": 100,
                "threat": None,
                "attack": None,
                "provenance": "measured by a test",
            },
            {
                "correct": 44,
                "total": 100,
                "threat": "linf 8/255",
                "attack": "PGD-20",
                "provenance": "measured by a test",
            },
        ],
    }
    card |= changes
    (folder / f"{name}.card.json").write_text(json.dumps(card))
    return model, card


def prefixed(state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {f"{prefix}{name}": value for name, value in state.items()}
