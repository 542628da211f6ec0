"""Tests of the example attacks in docs/evaluation/adding-an-attack.md."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F

from dent import Dent, DentConfig, ThreatModel
from dent.attacks import Attack, Outcome, Querier
from dent.errors import ConfigError
from dent.evaluation import Settings, estimate, evaluate
from tests.evaluation.subjects import make_model, make_subject

PAGE = Path(__file__).parents[2] / "docs" / "evaluation" / "adding-an-attack.md"
RADIUS = 8 / 255


class Target(NamedTuple):
    """The part of a `Querier` that the code on the page uses."""

    defense: Dent


def names_of(index: int) -> dict[str, Any]:
    """Return the names that a block of code on the page defines."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert len(blocks) == 3
    names: dict[str, Any] = {}
    exec(compile(blocks[index], str(PAGE), "exec"), names)  # noqa: S102
    return names


@pytest.fixture(scope="module")
def momentum() -> Any:
    return names_of(0)["Momentum"]


def test_momentum_example_is_a_complete_attack(momentum: Any) -> None:
    assert issubclass(momentum, Attack)
    assert momentum(3).longer().settings() == {"iterations": 6, "decay": 1.0}
    with pytest.raises(ConfigError):
        momentum(0)


def test_momentum_example_takes_its_planned_passes_and_lowers_accuracy(momentum: Any) -> None:
    model = make_model()
    dent = Dent(model, DentConfig(steps=1))
    subject = make_subject({"dent": dent}, [momentum(4)], model=model, eps="8/255")
    settings = Settings(n=8, batch_size=8, diagnostics="full")
    result = evaluate(subject, settings)
    for defense in result.defenses.values():
        found = defense.attack("momentum")
        assert (found.queries, found.backwards) == (5, 4)
        assert found.served.correct < defense.natural.correct
        assert found.claimed == found.served
        states = {item.name: item.state for item in defense.diagnostics}
        assert states["more iterations still help"] != "not-run"
        assert states["served differs from claimed"] == "passed"
    assert estimate(subject, settings).defenses["dent"].gradients > 4


def test_exact_pgd_example_follows_the_exact_gradient_of_a_defense() -> None:
    exact_pgd = names_of(2)["ExactPGD"]
    assert names_of(2)["strong"]().iterations == 20
    model = make_model()
    dent = Dent(model, DentConfig(steps=2, lr=0.05, statistics="test"))
    subject = make_subject({"dent": dent}, [exact_pgd(3)], model=model, eps="8/255")
    settings = Settings(n=8, batch_size=8)
    result = evaluate(subject, settings)
    for defense in result.defenses.values():
        found = defense.attack("exactpgd")
        assert (found.queries, found.backwards) == (7, 3)
        assert found.served.correct < defense.natural.correct
        assert found.claimed == found.served
    assert estimate(subject, settings).defenses["dent"].unrolled == 3

    x, y = subject.dataset.batch(list(range(8)))
    leaf = x.clone().requires_grad_()
    lines = re.findall(r"```python\n(d = .*?)```", PAGE.read_text(), flags=re.DOTALL)
    names: dict[str, Any] = {"target": Target(dent), "leaf": leaf}
    exec(lines[0], names)  # noqa: S102
    loss = F.cross_entropy(names["logits"], y, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, leaf)
    one = exact_pgd(1, step=1.0)(dent, x, y, subject.threat, seed=0).adversarial
    moved = subject.threat.project(x + RADIUS * gradient.sign(), x)
    held = torch.autograd.grad(F.cross_entropy(dent(leaf), y, reduction="sum"), leaf)[0]
    assert not torch.equal(held.sign(), gradient.sign())
    assert torch.equal(one, moved)


def test_attack_that_calls_adapt_on_the_static_model_gets_a_helpful_error(momentum: Any) -> None:
    class Forgetful(momentum):  # type: ignore[misc]
        def run(self, target: Querier, threat: ThreatModel, seed: int) -> Outcome:
            d: Any = target.defense
            d.predict(target.natural, d.adapt(target.natural))
            return Outcome(target.natural, target.labels != target.labels)

    model = make_model()
    subject = make_subject({"dent": Dent(model, DentConfig(steps=1))}, [Forgetful()], model=model)
    with pytest.raises(AttributeError, match=r"plain module without adapt and.*Use target\(x\)"):
        evaluate(subject, Settings(n=8, batch_size=8))
