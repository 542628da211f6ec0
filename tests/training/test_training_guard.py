"""The accuracies that training watches, and the stop after catastrophic overfitting."""

import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dent import models
from dent.attacks import PGD
from dent.errors import DentError
from dent.threat import ThreatModel
from dent.training import CatastrophicOverfittingWarning, accelerator, loop, train
from dent.training.modes import evaluating
from dent.training.watch import Watched, collapsed, measure
from tests.training.subjects import MODEL, fast, halves, run


def test_catastrophic_overfitting_stops_training_and_keeps_the_best_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    robust = iter([10, 14, 3, 20])
    monkeypatch.setattr(loop, "measure", lambda *_, **__: Watched(32, 20, next(robust)))
    with pytest.warns(CatastrophicOverfittingWarning, match=r"fell from 14 to 3 of 32 .* epoch 3"):
        result = run(tmp_path / "run", fast(epochs=4))
    assert "catastrophic overfitting" in result.stopped
    assert result.best_epoch == 2
    assert [line["catastrophic_overfitting"] for line in result.metrics] == [False, False, True]
    best, last = load_file(result.best), load_file(result.last)
    assert any(not torch.equal(best[name], last[name]) for name in best)
    # A second run warns again and does not train further.
    with pytest.warns(CatastrophicOverfittingWarning):
        assert run(tmp_path / "run", fast(epochs=4)).best_epoch == 2


def test_a_small_fall_of_robust_accuracy_does_not_stop_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    robust = iter([10, 8, 12])
    monkeypatch.setattr(loop, "measure", lambda *_, **__: Watched(32, 20, next(robust)))
    with warnings.catch_warnings():
        warnings.simplefilter("error", CatastrophicOverfittingWarning)
        result = run(tmp_path / "run")
    assert (result.stopped, result.best_epoch) == ("", 3)


@pytest.mark.parametrize(
    ("robust", "best", "expected"),
    [(0, 200, True), (99, 200, True), (100, 200, False), (0, 5, False), (0, -1, False)],
)
def test_a_collapse_is_less_than_half_of_a_best_accuracy_above_noise(
    robust: int, best: int, expected: bool
) -> None:
    assert collapsed(robust, best, 512) is expected


@pytest.mark.usefixtures("own_precision")
@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_accuracies_are_measured_in_float32_whatever_the_precision_of_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ema: float
) -> None:
    images, watch = halves()
    x, _ = watch.batch(range(16))
    logits: list[tuple[torch.Tensor, torch.Tensor]] = []

    def compared(model: torch.nn.Module, *_: object, **__: object) -> Watched:
        fresh = models.build(MODEL, 10).eval().to(memory_format=torch.channels_last)
        fresh.load_state_dict(model.state_dict())
        with evaluating(model), torch.no_grad():
            logits.append((model(x), fresh(x)))
        return Watched(32, 20, 20)

    monkeypatch.setattr(loop, "measure", compared)
    recipe = fast(None, epochs=1, ema=ema)
    train(MODEL, recipe, images, watch, tmp_path / "run", accelerator("cpu", "bf16"), watched=32)
    ((watched, expected),) = logits
    assert torch.equal(watched, expected)


def test_measure_matches_a_direct_count_and_does_not_change_the_model() -> None:
    torch.manual_seed(0)
    model = models.build(MODEL, 10).train()
    images, _ = halves()
    threat, attack = ThreatModel("linf", "1/255"), PGD(iterations=2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = measure(model, images, range(40), threat, attack, device=torch.device("cpu"), seed=1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(module.training for module in model.modules())
    x, y = images.batch(range(40))
    model.eval()
    with torch.no_grad():
        right = model(x).argmax(1) == y
    claimed = attack(model, x[right], y[right], threat, seed=1).fooled
    assert found == Watched(40, int(right.sum()), int((~claimed).sum()))
    assert 0 <= found.robust <= found.natural


def test_a_diverging_training_ends_with_an_error(tmp_path: Path) -> None:
    with pytest.raises(DentError, match=r"the loss became .* lower the learning rate"):
        run(tmp_path / "run", fast(None, lr=1e8, ema=0.0))
