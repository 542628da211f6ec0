"""Fixtures of the report tests: small real runs on the tiny CNN, each made once."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dent import Dent, DentConfig, SmoothingConfig, ThreatModel, data
from dent.attacks import make
from dent.data import ArrayDataset, ImageDataset
from dent.evaluation import EvaluationResult, Settings, Subject, evaluate
from dent.evaluation.sweeps import sweep
from tests.small_models import make_tiny_cnn

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="session")
def model() -> nn.Module:
    made = make_tiny_cnn()
    made.load_state_dict(load_file(GOLDEN / "tiny_cnn.safetensors"))
    return made.eval()


@pytest.fixture(scope="session")
def labelled(model: nn.Module) -> ArrayDataset:
    """The 16 golden images. Two labels are wrong, all others are the predictions of the model."""
    images: Tensor = load_file(GOLDEN / "golden.safetensors")["inputs"]
    labels = model(images).argmax(dim=1)
    labels[[3, 11]] = (labels[[3, 11]] + 1) % 10
    pixels = images.mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    classes = tuple(f"kind {index}" for index in range(10))
    return ArrayDataset("golden-16", "test", classes, pixels, labels.numpy())


class Noisy(nn.Module):
    """A model with random noise on its logits: claims of attacks differ from submissions."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x)
        return logits + torch.randn_like(logits)


@pytest.fixture(scope="session")
def subject(model: nn.Module, labelled: ImageDataset) -> Subject:
    smoothing = SmoothingConfig(sigma=0.5, lr=0.25)
    return Subject(
        model=model,
        dataset=labelled,
        defenses={
            "dent": Dent(model, DentConfig(steps=2, lr=0.05)),
            "dent-nominal": Dent(
                model, DentConfig(steps=2, lr=0.05, statistics="test", smoothing=smoothing)
            ),
            "noisy": Noisy(model),
        },
        attacks=(make("apgd-ce", iterations=3), make("square", iterations=4)),
        threat=ThreatModel("linf", "2/255"),
        model_name="tiny-cnn",
    )


@pytest.fixture(scope="session")
def settings() -> Settings:
    return Settings(n=16, batch_size=8)


@pytest.fixture(scope="session")
def run_path(
    subject: Subject, settings: Settings, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("runs") / "first"
    evaluate(subject, settings, out=path)
    return path


@pytest.fixture(scope="session")
def result(run_path: Path) -> EvaluationResult:
    return EvaluationResult.model_validate_json((run_path / "result.json").read_bytes())


@pytest.fixture(scope="session")
def sample_run(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the bundled sample images, which can be loaded again by their name."""
    path = tmp_path_factory.mktemp("runs") / "bundled"
    smoothing = SmoothingConfig(sigma=0.7, learn=False)
    subject = Subject(
        model,
        data.load("cifar10-sample"),
        {"smoothing": Dent(model, DentConfig(steps=0, smoothing=smoothing))},
        (make("apgd-ce", iterations=2),),
        ThreatModel("linf", "8/255"),
        "tiny-cnn",
    )
    evaluate(subject, Settings(n=16, batch_size=16), out=path)
    return path


@pytest.fixture(scope="session")
def eps_sweep(subject: Subject, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _sweep(subject, tmp_path_factory.mktemp("sweeps") / "eps", "eps", ["4/255", "1/255"])


@pytest.fixture(scope="session")
def batch_sweep(subject: Subject, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _sweep(subject, tmp_path_factory.mktemp("sweeps") / "batch", "batch_size", [4, 8])


@pytest.fixture(scope="session")
def partial_run(subject: Subject, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was interrupted in its second batch."""
    path = tmp_path_factory.mktemp("runs") / "partial"
    with pytest.raises(KeyboardInterrupt):
        evaluate(small(subject), Settings(n=16, batch_size=8), out=path, progress=_stop_at(9))
    return path


def small(subject: Subject) -> Subject:
    """Return the subject with only one defense and one short attack."""
    defenses = {"dent": subject.defenses["dent"]}
    return replace(subject, attacks=(make("apgd-ce", iterations=2),), defenses=defenses)


def _sweep(subject: Subject, out: Path, over: Any, values: list[Any]) -> Path:
    sweep(small(subject), Settings(n=8, batch_size=8), over=over, values=values, out=out)
    return out


def _stop_at(units: int) -> Callable[[Any], None]:
    def stop(state: Any) -> None:
        if state.done >= units:
            raise KeyboardInterrupt

    return stop


def letters_of(result: EvaluationResult) -> dict[str, str]:
    """Return the letters of the flags by defense; flags get letters in order of occurrence."""
    met: dict[str, str] = {}
    for found in result.defenses.values():
        for flag in found.raised:
            met.setdefault(flag.name, "abcdefgh"[len(met)])
    assert not any(flag.raised for flag in result.diagnostics)
    return {
        name: ",".join(sorted(met[flag.name] for flag in found.raised))
        for name, found in result.defenses.items()
    }


@pytest.fixture(scope="session")
def stopped_run() -> Path:
    """A published run that stopped after 8 of 18 attacks on dent+; on static, attacks carried."""
    return Path(__file__).parents[2] / "board/cifar10-linf-8_255-v1/dent+/headline"
