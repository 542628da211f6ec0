"""Tests that need a GPU; `make gpu` runs them."""

import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from dent import DENT, DENT_PLUS, Dent, DentConfig
from dent.evaluation import EvaluationResult, Progress, Subject, evaluate, verify
from tests.evaluation.subjects import SMALL, make_model, make_subject
from tests.on_device import DEVICE
from tests.small_models import make_images, make_tiny_cnn
from tests.test_golden import CASES, GOLDEN, config

pytestmark = pytest.mark.gpu


def in_float64(where: torch.device, name: str) -> tuple[Tensor, ...]:
    """Return logits, input gradient, entropy and adapted parameters of a golden case."""
    golden = load_file(GOLDEN / "golden.safetensors")
    model = make_tiny_cnn()
    model.load_state_dict(load_file(GOLDEN / "tiny_cnn.safetensors"))
    defense = Dent(model.eval().double().to(where), config(CASES[name]))
    x = golden["inputs"].double().to(where).requires_grad_()
    adaptation = defense.adapt(x)
    logits = defense.predict(x, adaptation)
    labels = golden["labels"].to(where)
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits, labels), x)
    found = (logits.detach(), gradient, adaptation.entropy, *adaptation.parameters.values())
    return tuple(each.cpu() for each in found)


@pytest.mark.parametrize("name", CASES)
def test_gpu_and_cpu_agree_in_float64(name: str) -> None:
    expected = in_float64(torch.device("cpu"), name)
    for here, there in zip(expected, in_float64(DEVICE, name), strict=True):
        torch.testing.assert_close(there, here, atol=1e-9, rtol=0)


def served(result: EvaluationResult) -> dict[str, object]:
    return {name: (each.natural, each.worst) for name, each in result.defenses.items()}


def test_a_run_from_the_gpu_verifies_on_the_cpu_and_vice_versa(tmp_path: Path) -> None:
    def subject(where: torch.device) -> Subject:
        model = make_model().to(where)
        return make_subject({"dent": Dent(model, replace(DENT_PLUS, steps=3))}, model=model)

    devices = (DEVICE, torch.device("cpu"))
    for here, there in (devices, devices[::-1]):
        folder = tmp_path / here.type
        result = evaluate(subject(here), SMALL, out=folder)
        assert result.sessions[0].device.startswith(f"{here.type}: ")
        found = verify(folder, subject(there))
        assert found.status == "verified", found.checks


def test_an_interrupted_run_resumes_to_the_same_result(tmp_path: Path) -> None:
    whole = evaluate(make_subject(), SMALL, out=tmp_path / "whole")

    def stop(state: Progress) -> None:
        if state.done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(make_subject(), SMALL, out=tmp_path / "parts", progress=stop)
    parts = evaluate(make_subject(), SMALL, out=tmp_path / "parts")
    assert served(parts) == served(whole)


@pytest.mark.parametrize("defense", [DENT, DENT_PLUS])
def test_gpu_synchronizations_of_adapt_do_not_grow_with_the_steps(
    defense: DentConfig, tiny_cnn: nn.Module
) -> None:
    x = make_images().to(DEVICE)
    waited = []
    for steps in (1, 8):
        dent = Dent(tiny_cnn, replace(defense, steps=steps))
        dent(x)  # the first batch also checks the defense
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                dent.adapt(x)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        waited.append([str(each.message) for each in caught if "synchron" in str(each.message)])
    assert len(waited[0]) == len(waited[1]) == 1, waited
