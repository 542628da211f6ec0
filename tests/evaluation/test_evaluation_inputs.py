"""Defenses, models and attacks that write into the tensors that they get."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dent.attacks import Attack, make
from dent.attacks.adaptive import AdaptiveAPGD
from dent.attacks.base import AttackError, Outcome
from dent.attacks.querier import Querier
from dent.evaluation import Settings, Subject, evaluate, suite, verify
from dent.evaluation.submission.submission import submit
from dent.threat import ThreatModel
from tests.evaluation.test_evaluation_suite_answers import X, Y, dataset
from tests.evaluation.test_evaluation_tricks import NET
from tests.evaluation.tricks import Trick

EPS = ThreatModel("linf", "6/255")


class Clamps(Trick):
    """Clamps the pixels, in place or not."""

    def __init__(self, *, in_place: bool) -> None:
        super().__init__(NET)
        self.in_place = in_place

    def predict(self, x: Tensor, adaptation: Any) -> Tensor:
        return super().predict(x.clamp_(0.3, 0.7) if self.in_place else x.clamp(0.3, 0.7), None)


class Centres(nn.Module):
    """Subtracts a constant mean, in place or not."""

    def __init__(self, *, in_place: bool) -> None:
        super().__init__()
        self.net, self.in_place = NET, in_place
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = x.sub_(0.05) if self.in_place else x - 0.05
        logits: Tensor = self.net(x)
        return logits


def records(static: nn.Module, defenses: dict[str, nn.Module], out: Path | None = None) -> Any:
    attacks = [
        make("apgd-ce", iterations=5),
        make("gmsa-min", rounds=2, iterations=2),
        AdaptiveAPGD("bpda", losses=("margin",), iterations=3),
        make("square", iterations=20),
    ]
    subject = Subject(static, dataset(), defenses, attacks, EPS)
    return evaluate(subject, Settings(batch_size=12), out=out)


def facts(result: Any, name: str) -> Any:
    found = result.defenses[name]
    attacks = [
        attack.model_dump(include={"kind", "attack", "served", "claimed", "queries", "backwards"})
        for attack in found.attacks
    ]
    return found.natural.correct, found.worst.served.correct, attacks


def test_a_defense_that_writes_into_its_images_changes_no_result() -> None:
    alone = records(NET, {"plain": Trick(NET), "clamps": Clamps(in_place=False)})
    beside = records(NET, {"clamps": Clamps(in_place=True), "plain": Trick(NET)})
    for name in ("static", "plain", "clamps"):
        assert facts(beside, name) == facts(alone, name)


def test_a_static_model_that_writes_into_its_images_changes_no_result() -> None:
    written = records(Centres(in_place=True), {"plain": Trick(NET)})
    clean = records(Centres(in_place=False), {"plain": Trick(NET)})
    for name in ("static", "plain"):
        assert facts(written, name) == facts(clean, name)


def test_writes_through_data_do_not_affect_other_defenses_or_verify(tmp_path: Path) -> None:
    class Overwrites(Trick):
        def predict(self, x: Tensor, adaptation: Any) -> Tensor:
            if not x.requires_grad:
                x.data.fill_(0.5)
            return super().predict(x, adaptation)

    defenses = {"it": Overwrites(NET), "plain": Trick(NET)}
    result = records(NET, defenses, tmp_path)
    assert facts(result, "plain") == facts(records(NET, {"plain": Trick(NET)}), "plain")
    attacks = [make("apgd-ce", iterations=5), make("gmsa-min", rounds=2, iterations=2)]
    attacks += [AdaptiveAPGD("bpda", losses=("margin",), iterations=3)]
    attacks += [make("square", iterations=20)]
    found = verify(tmp_path, Subject(NET, dataset(), defenses, attacks, EPS))
    assert found.status == "verified", found.problems


@pytest.mark.parametrize("gradients", [False, True])
def test_submit_passes_one_copy_of_the_images_to_adapt_and_predict(gradients: bool) -> None:
    class Shares(Trick):
        def adapt(self, x: Tensor) -> Any:
            x.mul_(0)
            x.requires_grad_()

        def predict(self, x: Tensor, adaptation: Any) -> Tensor:
            assert not x.detach().any()
            return super().predict(x, adaptation)

    images = X.clone()
    submit(Shares(NET), images, seed=0, gradients=gradients)
    assert images.equal(X)
    assert not images.requires_grad


def test_an_attack_that_overwrites_the_natural_images_is_refused() -> None:
    @dataclass(frozen=True)
    class Moves(Attack):
        def run(self, target: Querier, threat: ThreatModel, seed: int) -> Outcome:
            del threat, seed
            target.natural.fill_(0.5)
            target.labels.fill_(3)
            return Outcome(target.natural, torch.ones(len(Y), dtype=torch.bool))

    labels = Y.clone()
    with pytest.raises(AttackError, match="left the threat model"):
        Moves()(NET, X, labels, EPS, seed=0)
    assert labels.equal(Y)


@pytest.mark.slow
def test_the_whole_suite_has_the_same_result_if_a_defense_writes_in_place() -> None:
    def run(*, in_place: bool) -> Any:
        defenses = {"it": Clamps(in_place=in_place)}
        subject = Subject(NET, dataset(), defenses, suite("dynamic", "small"), EPS)
        return evaluate(subject, Settings(batch_size=12, until="end"))

    assert facts(run(in_place=True), "it") == facts(run(in_place=False), "it")
