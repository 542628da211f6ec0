"""RobustBench's own `benchmark()`, compared with the example that writes out its steps."""

import logging
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pyautoattack
import pytest
import torch
from torch import Tensor, nn

from dent import DENT_PLUS, Dent, DentConfig, ThreatModel
from dent.data import load
from dent.models import load as load_model
from dent.models.robustbench_package import import_robustbench

Example = Callable[[str], dict[str, Any]]
EPS = 0.3 / 255


class TheirAutoAttack:
    """pyautoattack with the interface of the package `autoattack`, which is not on PyPI."""

    shorten: Callable[[Any], None]

    def __init__(self, model: nn.Module, log_path: None = None, **settings: Any) -> None:
        self.adversary = pyautoattack.AutoAttack(model, seed=0, **settings)
        type(self).shorten(self.adversary)

    def run_standard_evaluation(
        self, images: Tensor, labels: Tensor, bs: int, state_path: None
    ) -> Tensor:
        adversarial, _ = self.adversary.run_standard_evaluation(images, labels, batch_size=bs)
        return adversarial  # type: ignore[no-any-return]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Callable[[nn.Module, Tensor, Tensor], Any]:
    """Return RobustBench's own `benchmark`, with `pyautoattack` in place of `autoattack`.

    It gets images and labels as arguments, and does not download them.
    """
    pytest.importorskip("timm")
    if find_spec("robustbench") is None:
        pytest.skip("robustbench is not installed: pip install torch-dent[zoo]")
    data, module = map(import_robustbench, ("robustbench.data", "robustbench.eval"))
    monkeypatch.setattr(module, "AutoAttack", TheirAutoAttack)

    def run(net: nn.Module, images: Tensor, labels: Tensor) -> Any:
        loaders = {data.BenchmarkDataset.cifar_10: lambda *_: (images, labels)}
        monkeypatch.setattr(data, "_clean_dataset_loaders", loaders)
        settings = {"dataset": "cifar10", "threat_model": "Linf", "eps": EPS, "batch_size": 16}
        return module.benchmark(net, n_examples=len(images), **settings)

    return run


def test_the_example_has_the_accuracies_of_robustbench_benchmark(
    example: Example, benchmark: Any, monkeypatch: pytest.MonkeyPatch, tiny_cnn: nn.Sequential
) -> None:
    names = example("robustbench_benchmark")
    monkeypatch.setattr(TheirAutoAttack, "shorten", staticmethod(names["shorten"]), raising=False)
    images, _ = load("cifar10-sample").batch(range(20))
    for net in (tiny_cnn, Dent(tiny_cnn, DentConfig(steps=1, lr=0.1))):
        labels = net(images).argmax(1)
        labels[0] = (labels[0] + 1) % 10
        adversarial = names["attack"](net, images, labels, EPS)
        ours = (names["clean_accuracy"](net, x, labels) for x in (images, adversarial))
        theirs = benchmark(net, images, labels)
        assert theirs == pytest.approx(tuple(ours))
        assert 0 < theirs[1] < theirs[0] < 1


@pytest.mark.slow
def test_the_example_prints_its_accuracies_and_warns_of_a_dynamic_defense(
    example: Example, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    names = example("robustbench_benchmark")
    with caplog.at_level(logging.WARNING):
        accuracies = names["main"](n=6)
    assert "it seems to be a dynamic defense!" in caplog.text
    assert f"{accuracies['dent+, AutoAttack']:.1%}" in capsys.readouterr().out
    assert accuracies["static, AutoAttack"] < accuracies["static, natural"]
    images, labels = load("cifar10-sample").batch(range(6))
    defended = Dent(load_model("resnet-14-2-linf"), DENT_PLUS)
    right = (defended(images).argmax(1) == labels).float().mean()
    assert accuracies["dent+, natural"] == pytest.approx(float(right))


def test_the_attack_of_the_example_stays_in_the_threat_model(example: Example) -> None:
    images, labels = load("cifar10-sample").batch(range(4))
    model = load_model("resnet-14-2-linf")
    adversarial = example("robustbench_benchmark")["attack"](model, images, labels)
    assert not ThreatModel("linf", "8/255").check(adversarial, images).any()
    assert not torch.equal(adversarial, images)
