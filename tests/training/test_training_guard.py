"""What is watched while training, and what happens when it collapses."""

import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dent import models
from dent.attacks import PGD
from dent.errors import DentError
from dent.threat import ThreatModel
from dent.training import CatastrophicOverfittingWarning, loop
from dent.training.watch import Watched, collapsed, measure
from tests.training.subjects import MODEL, fast, halves, run


def test_a_collapse_stops_training_and_keeps_the_best(
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
    # Asked for again, it says so again and does not go on.
    with pytest.warns(CatastrophicOverfittingWarning):
        assert run(tmp_path / "run", fast(epochs=4)).best_epoch == 2


def test_no_collapse_without_a_fall(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_a_collapse_is_half_the_best_and_not_chance(robust: int, best: int, expected: bool) -> None:
    assert collapsed(robust, best, 512) is expected


def test_measuring_counts_what_a_loop_counts_and_leaves_the_model_alone() -> None:
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


def test_a_diverging_training_says_so(tmp_path: Path) -> None:
    with pytest.raises(DentError, match=r"the loss became .* lower the learning rate"):
        run(tmp_path / "run", fast(None, lr=1e8, ema=0.0))
