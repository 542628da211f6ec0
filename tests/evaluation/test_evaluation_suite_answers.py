"""The whole suite, through the engine, on defenses whose truth is known."""

from typing import Any

import torch
from torch import Tensor, nn

from dent.attacks.adaptive import AdaptiveAPGD
from dent.data.dataset import ArrayDataset
from dent.evaluation import EvaluationResult, Settings, Subject, evaluate, suite
from dent.evaluation.diagnostics import CERTIFICATE
from dent.threat import ThreatModel
from tests.attacks.known_defenses import Identity, Masked

COUNT = 24


def linear(seed: int = 0) -> nn.Sequential:
    """A linear classifier of four classes, whose robust accuracy has a closed form."""
    layer = nn.Linear(48, 4)
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(4, 48, generator=draws).sign())
        layer.bias.copy_(-layer.weight.sum(dim=1) / 2)
    return nn.Sequential(nn.Flatten(), layer).eval()


def pixels() -> Tensor:
    draws = torch.Generator().manual_seed(5)
    return torch.randint(32, 224, (COUNT, 4, 4, 3), generator=draws, dtype=torch.uint8)


def dataset(model: nn.Module) -> ArrayDataset:
    with torch.no_grad():
        labels = model(pixels().permute(0, 3, 1, 2).float() / 255).argmax(dim=1)
    return ArrayDataset(
        name="known",
        split="test",
        classes=tuple("abcd"),
        pixels=pixels().numpy(),
        labels=labels.numpy(),
        sample_ids=tuple(range(COUNT)),
    )


def run(make_defense: Any, attacks: Any, eps: str = "4/255") -> EvaluationResult:
    model = linear()
    subject = Subject(
        model, dataset(model), {"it": make_defense(model)}, attacks, ThreatModel("linf", eps)
    )
    return evaluate(subject, Settings(batch_size=COUNT))


def states(result: EvaluationResult, name: str = "it") -> dict[str, str]:
    return {item.name: item.state for item in result.defenses[name].diagnostics}


def test_who_changes_nothing_gains_exactly_nothing() -> None:
    result = run(Identity, suite("dynamic", "small"))
    found = result.defenses["it"]
    assert found.difference is not None
    assert found.verdict is not None
    assert 0 < found.worst.served.correct < COUNT
    assert (found.difference.value, found.verdict.ruling) == (0, "no gain")
    assert found.verdict.natural.value == 0
    assert (found.verdict.budget, found.verdict.gates) == ("small", ())
    assert states(result)[CERTIFICATE] == states(result, "static")[CERTIFICATE] == "passed"
    assert result.defenses["static"].verdict is None


def test_a_mask_gains_by_its_own_gradient_and_nothing_under_the_suite() -> None:
    plain = AdaptiveAPGD("stop-gradient", iterations=20)
    alone = evaluate(
        Subject(
            (model := linear()),
            dataset(model),
            {"it": Masked(model)},
            [plain],
            ThreatModel("linf", "4/255"),
        ),
        Settings(batch_size=COUNT, transfer=False),
    ).defenses["it"]
    assert alone.difference is not None
    assert alone.difference.interval is not None
    assert alone.difference.interval[0] > 0  # what it claims
    assert alone.verdict is None  # and nobody rules on it
    result = run(Masked, suite("dynamic", "small"))
    found = result.defenses["it"]
    assert found.verdict is not None
    assert found.verdict.ruling == "no gain"
    assert abs(found.worst.served.correct - result.defenses["static"].worst.served.correct) <= 1
    gates = {gate.name: gate for gate in found.verdict.gates}
    assert not gates["zero gradient"].open
    assert gates["zero gradient"].follow_ups == ("adaptive-bpda", "square", "rays")
    assert gates[CERTIFICATE].open  # a gradient of zero certifies nothing
    certificate = next(item for item in found.diagnostics if item.name == CERTIFICATE)
    assert (certificate.state, certificate.value) == ("raised", 1.0)
