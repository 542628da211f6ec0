"""On another device than the CPU: the same results, no mixed devices, and no needless waiting.

The device is emulated (tests/pretended.py), so these tests need no GPU.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dent import DENT, DENT_NOMINAL, DENT_PLUS, Dent, DentConfig, Performance
from dent.attacks import make
from dent.config import ViewsConfig
from dent.defenses import (
    ET3,
    AntiAdversary,
    Hedge,
    MeanSparse,
    MedBN,
    Purifier,
    StatisticsPrior,
    TentOnline,
)
from dent.evaluation import Settings, evaluate, verify
from dent.evaluation.probe import gradient_check
from dent.support import devices
from tests.evaluation.subjects import Push, make_model, make_subject
from tests.pretended import ELSEWHERE, Elsewhere, pretending
from tests.small_models import BATCH_NORM, MODELS, make_images

SMALL = [name for name in MODELS if "resnet18" not in name]
ALONE = DentConfig(lr=0.1, optimizer="sgd", granularity="sample", reduction="sum")
CONFIGS = {
    "dent": DENT,
    "dent-plus": DENT_PLUS,
    "alone": ALONE,
    "test-statistics": replace(DENT_NOMINAL, smoothing=None),
    "views": replace(DENT, views=ViewsConfig(count=2)),
    "last-layer": replace(DENT, last_layers=1),
    "static": DentConfig(steps=0, statistics="test"),
}
CASES = [
    pytest.param(
        model,
        config,
        id=f"{model}-{config}",
        marks=() if model == "tiny-cnn" or config == "dent-plus" else pytest.mark.slow,
    )
    for model in SMALL
    for config in CONFIGS
    if config != "static" or model in BATCH_NORM
]
SMOOTHED = replace(DENT_NOMINAL, steps=3)
PLAIN = Performance(memory_format="preserve")


def built(name: str) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[name]().eval()


def asked(config: DentConfig, name: str = "tiny-cnn") -> tuple[list[str], list[str]]:
    """Return the operations for which `adapt` and `predict` of a second batch wait."""
    with pretending() as reads:
        x = make_images().to(ELSEWHERE)
        defense = Dent(built(name).to(ELSEWHERE), config)
        defense(x)  # the first batch also checks the defense
        reads.clear()
        adaptation = defense.adapt(x)
        adapting = list(reads)
        reads.clear()
        defense.predict(x, adaptation)
        return adapting, list(reads)


def test_emulated_device_refuses_mixed_devices_and_records_reads() -> None:
    x = torch.rand(2, 3)
    with pretending() as reads:
        away = x.to(ELSEWHERE)
        assert reads == ["aten._to_copy.default to the device"]
        reads.clear()
        assert isinstance(away, Elsewhere)
        assert away.device == ELSEWHERE == torch.zeros_like(away).device
        assert (away + 1).device == ELSEWHERE
        assert torch.zeros(2, 3, device=away.device).add_(away).sum().device == ELSEWHERE
        assert x.device.type == "cpu"
        assert reads == []
        for wrong in (
            lambda: away + x,
            lambda: torch.cat([away, x]),
            lambda: torch.where(x > 0.5, away, 0),
            lambda: nn.functional.linear(away, x),
        ):
            with pytest.raises(RuntimeError, match="same device"):
                wrong()
        assert torch.equal(away.cpu(), x)
        assert len(reads) == 1
        reads.clear()
        assert torch.tensor([1.0], device=away.device).device == ELSEWHERE
        assert bool((away >= 0).all())
        assert away[away[:, 0] >= 0].shape == (2, 3)
        assert away.sum().item() == pytest.approx(float(x.sum()))
        assert torch.equal(away, away)
        assert len(reads) == 5
        reads.clear()
        assert torch.equal(away[torch.tensor([1, 0])], away.flip(0))
        assert torch.zeros_like(away).copy_(x).device == ELSEWHERE
        assert sum(each.endswith("to the device") for each in reads) == 2
        leaf = away.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(leaf.square().sum(), leaf)
        assert gradient.device == ELSEWHERE
        assert torch.equal(gradient.cpu(), 2 * x)


@pytest.mark.parametrize(("model_name", "config_name"), CASES)
def test_logits_and_status_are_the_same_on_another_device(
    model_name: str, config_name: str
) -> None:
    config = replace(CONFIGS[config_name], steps=min(CONFIGS[config_name].steps, 2))
    model, x = built(model_name), make_images()
    here = Dent(model, config, PLAIN)
    expected = here.adapt(x)
    logits = here.predict(x, expected)
    with pretending():
        there, away = Dent(built(model_name).to(ELSEWHERE), config), x.to(ELSEWHERE)
        found = there.adapt(away)
        answer = there.predict(away, found)
        assert answer.device == found.entropy.device == found.status.device == ELSEWHERE
        assert all(value.device == ELSEWHERE for value in found.parameters.values())
        torch.testing.assert_close(answer.cpu(), logits, rtol=1e-4, atol=1e-5)
        assert torch.equal(found.status.cpu(), expected.status)


@pytest.mark.parametrize(
    "make_defense",
    [
        AntiAdversary,
        ET3,
        lambda model: Hedge(model, steps=2, seed=3),
        MeanSparse,
        MedBN,
        Purifier,
        StatisticsPrior,
        TentOnline,
    ],
    ids=["anti-adversary", "et3", "hedge", "mean-sparse", "med-bn", "purifier", "prior", "tent"],
)
def test_other_defenses_give_the_same_logits_on_another_device(
    make_defense: Callable[[nn.Module], Callable[[Tensor], Tensor]],
) -> None:
    x = make_images()
    logits = make_defense(built("tiny-cnn"))(x)
    with pretending():
        answer = make_defense(built("tiny-cnn").to(ELSEWHERE))(x.to(ELSEWHERE))
        assert answer.device == ELSEWHERE
        torch.testing.assert_close(answer.cpu(), logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x[0].fill_(torch.nan),
        lambda x: x[1, 0, 0, 0].fill_(torch.inf),
        lambda x: x.fill_(-torch.inf),
    ],
)
def test_non_finite_images_give_the_same_results_on_another_device(
    change: Callable[[Tensor], object],
) -> None:
    x = make_images()
    change(x)
    here = Dent(built("tiny-cnn"), replace(DENT, steps=2), PLAIN)
    expected = here.adapt(x)
    logits = here.predict(x, expected)
    with pretending():
        there = Dent(built("tiny-cnn").to(ELSEWHERE), replace(DENT, steps=2))
        found = there.adapt(x.to(ELSEWHERE))
        answer = there.predict(x.to(ELSEWHERE), found).cpu()
        assert torch.equal(found.status.cpu(), expected.status)
    torch.testing.assert_close(answer, logits, rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("config_name", [name for name in CONFIGS if name != "static"])
def test_steps_do_not_wait_for_the_device(config_name: str) -> None:
    # One read of the batch finds the non-finite rows and the range of the pixels.
    for steps in (1, 4):
        adapting, predicting = asked(replace(CONFIGS[config_name], steps=steps))
        assert adapting == ["aten._to_copy.default"], steps
        # With last_layers, predict also checks that the prefix was computed for this batch.
        known = ["aten.equal.default"] if config_name == "last-layer" else []
        assert predicting == ["aten._to_copy.default", *known], steps


def test_smoothing_waits_once_per_step_for_the_size_of_its_filter() -> None:
    one_look, few = asked(replace(SMOOTHED, steps=0))[0], asked(SMOOTHED)[0]
    more = asked(replace(SMOOTHED, steps=6))[0]
    assert len(few) - len(one_look) == 3
    assert len(more) - len(few) == 3
    assert not any(each.endswith("to the device") for each in more)


def test_exact_gradient_is_the_same_on_another_device() -> None:
    config = replace(DENT_PLUS, steps=2)

    def gradient(defense: Dent, x: Tensor, **how: bool) -> Tensor:
        x = x.clone().requires_grad_()
        logits = defense.predict(x, defense.adapt(x, differentiable=True, **how))
        (found,) = torch.autograd.grad(logits.square().sum(), x)
        return found

    x = make_images()
    expected = gradient(Dent(built("tiny-cnn"), config, PLAIN), x)
    with pretending():
        there, away = Dent(built("tiny-cnn").to(ELSEWHERE), config), x.to(ELSEWHERE)
        for checkpointed in (False, True):
            found = gradient(there, away, checkpointed=checkpointed).cpu()
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_a_run_from_another_device_verifies_on_the_cpu(tmp_path: Path) -> None:
    config = replace(DENT_PLUS, steps=2)
    model = make_model()
    with pretending():
        away = make_model().to(ELSEWHERE)
        attacks = [Push(), make("square", iterations=2)]
        subject = make_subject({"dent": Dent(away, config)}, attacks, model=away)
        result = evaluate(subject, Settings(n=6, batch_size=4), out=tmp_path / "run")
    assert result.sessions[0].device.startswith("meta: ")
    here = make_subject({"dent": Dent(model, config)}, attacks, model=model)
    found = verify(tmp_path / "run", here)
    assert found.status == "verified", found.checks


def test_evaluation_on_a_device_without_float64_gives_the_same_result(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (devices, gradient_check):
        monkeypatch.setattr(module, "has_float64", lambda device: device != ELSEWHERE)
    config = replace(DENT_PLUS, steps=2)
    settings = Settings(n=4, batch_size=4)

    def robust(where: torch.device) -> dict[str, object]:
        model = make_model().to(where)
        attacks = [make("apgd-ce", iterations=2), make("rays", iterations=4)]
        subject = make_subject({"dent": Dent(model, config)}, attacks, model=model)
        result = evaluate(subject, settings)
        return {name: each.worst.served for name, each in result.defenses.items()}

    expected = robust(torch.device("cpu"))
    with pretending(float64=False):
        with pytest.raises(TypeError, match="no float64"):
            torch.rand(2).to(ELSEWHERE).double()
        assert robust(ELSEWHERE) == expected


def test_mean_sparse_statistics_of_images_need_no_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "has_float64", lambda device: device != ELSEWHERE)
    model, x = built("tiny-cnn"), make_images()
    expected = MeanSparse(model, images=x)(x)
    with pretending(float64=False):
        away = x.to(ELSEWHERE)
        answer = MeanSparse(built("tiny-cnn").to(ELSEWHERE), images=away)(away)
        assert answer.device == ELSEWHERE
        torch.testing.assert_close(answer.cpu(), expected, rtol=1e-4, atol=1e-5)
