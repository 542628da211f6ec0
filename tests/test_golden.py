"""The defense reproduces the results of the authors' code (tests/golden/README.md)."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from dent import Dent, DentConfig, entropy
from dent.adaptation.objectives import loss
from dent.adaptation.optim import AdaMod

GOLDEN = Path(__file__).parent / "golden"
CASES = json.loads((GOLDEN / "cases.json").read_text())


@pytest.fixture(scope="module")
def golden(device: torch.device) -> dict[str, Tensor]:
    found = load_file(GOLDEN / "golden.safetensors")
    return {name: value.to(device) for name, value in found.items()}


def config(case: dict[str, object]) -> DentConfig:
    return DentConfig.from_dict(
        {
            "steps": case["steps"],
            "lr": case["lr"],
            "optimizer": str(case["optimizer"]).lower(),
            "betas": (case["beta1"], case["beta2"]),
            "beta3": case["beta3"],
            "objective": str(case["objective"]).replace(" ", "-"),
            "granularity": case["granularity"],
            "statistics": case["statistics"],
        }
    )


def test_there_are_eight_golden_cases() -> None:
    assert len(CASES) == 8


def test_static_logits_match_the_authors_code(
    tiny_cnn: nn.Module, golden: dict[str, Tensor]
) -> None:
    logits = tiny_cnn(golden["inputs"])
    torch.testing.assert_close(logits, golden["static.logits"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", CASES)
def test_logits_gradient_and_parameters_match_the_authors_code(
    name: str, tiny_cnn: nn.Module, golden: dict[str, Tensor]
) -> None:
    defense = Dent(tiny_cnn, config(CASES[name]))
    x = golden["inputs"].clone().requires_grad_()
    adaptation = defense.adapt(x)
    logits = defense.predict(x, adaptation)
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits, golden["labels"]), x)

    torch.testing.assert_close(logits.detach(), golden[f"{name}.logits"], atol=1e-4, rtol=0)
    torch.testing.assert_close(gradient, golden[f"{name}.input_gradient"], atol=1e-5, rtol=0)
    for index, layer in enumerate(("1", "4")):
        for kind in ("weight", "bias"):
            torch.testing.assert_close(
                adaptation.parameters[f"{layer}.{kind}"],
                golden[f"{name}.bn{index}.{kind}"],
                atol=1e-4,
                rtol=0,
            )


def test_objectives_match_the_authors_code(golden: dict[str, Tensor]) -> None:
    logits = golden["objective.logits"]
    mean_entropy = entropy(logits).mean().reshape(1)
    information = loss(logits, "information-maximization", "mean").reshape(1)
    torch.testing.assert_close(mean_entropy, golden["objective.entropy"], atol=1e-6, rtol=0)
    torch.testing.assert_close(
        information, golden["objective.information_maximization_loss"], atol=1e-6, rtol=0
    )


def test_adamod_trajectory_matches_the_authors_code(golden: dict[str, Tensor]) -> None:
    optimizer = AdaMod(0.006, (0.99, 0.999), 0.6)
    value = golden["adamod.start"]
    state = optimizer.init(value)
    for gradient, expected in zip(
        golden["adamod.gradients"], golden["adamod.trajectory"], strict=True
    ):
        value, state = optimizer.step(value, gradient, state)
        torch.testing.assert_close(value, expected, atol=1e-7, rtol=1e-6)
