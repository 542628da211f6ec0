"""Defenses that recognize the seeds of a run, and what the verification finds under other seeds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dent.attacks import PGD
from dent.errors import InputError
from dent.evaluation import Reattack, Settings, Subject, Verification, evaluate, load_run, verify
from dent.evaluation.records.plan import seed_of
from dent.evaluation.submission.stream import serve_seed
from dent.evaluation.submission.submitter import DRAWS
from dent.evaluation.verification.other_seeds import p_value, stronger_attacks, unknown_seed
from dent.threat import ThreatModel
from tests.evaluation.test_evaluation_suite_answers import COUNT, dataset, linear, robust
from tests.evaluation.tricks import Trick

SIZE = 8
BATCHES = range(COUNT // SIZE)
ATTACK = PGD(iterations=5)
SCORED = {serve_seed(0, batch) for batch in BATCHES}
DRAWN = {seed_of(seed, "draw", draw) for seed in SCORED for draw in range(1, DRAWS + 1)}
ATTACKED = {seed_of(0, "unit", batch, ATTACK.name) for batch in BATCHES}


class Recognizes(Trick):
    """Predicts with another net where torch has one of some seeds.

    Args:
        net: The net elsewhere.
        other: The other net.
        seeds: The seeds.
        noise: Size of random numbers that are added to the logits. They change no prediction.
    """

    def __init__(
        self, net: nn.Module, other: nn.Module, seeds: set[int], noise: float = 0.0
    ) -> None:
        super().__init__(net)
        self.other, self.seeds, self.noise = other.eval(), seeds, noise

    def predict(self, x: Tensor, adaptation: Any) -> Tensor:
        logits: Tensor = self.other(x) if torch.initial_seed() in self.seeds else self.net(x)
        return logits + self.noise * torch.randn_like(logits) if self.noise else logits


def honest(net: nn.Module) -> Trick:
    return Trick(net)


def honest_noise(net: nn.Module) -> Trick:
    return Recognizes(net, net, set(), noise=0.3)


def scores_better(net: nn.Module) -> Trick:
    """Predicts with a robust net where it is scored."""
    return Recognizes(net, robust(), SCORED)


def draws_better(net: nn.Module) -> Trick:
    return Recognizes(net, robust(), SCORED | DRAWN, noise=1e-4)


def misleads(net: nn.Module) -> Trick:
    """Shows a robust net to the attacks, which then find nothing for the net that predicts."""
    return Recognizes(net, robust(), ATTACKED)


def subject_of(make: Callable[[nn.Module], Trick]) -> Subject:
    model = linear()
    return Subject(model, dataset(), {"it": make(model)}, [ATTACK], ThreatModel("linf", "24/255"))


def checked(
    make: Callable[[nn.Module], Trick], out: Path, reattack: Reattack | None = None
) -> tuple[int, Verification]:
    """Evaluate a defense, and return how many members are correct, and the verification."""
    settings = Settings(batch_size=SIZE, transfer=False, until="end")
    result = evaluate(subject_of(make), settings, out=out)
    found = verify(out, subject_of(make), reattack=reattack)
    return result.defenses["it"].worst.served.correct, found


@pytest.mark.parametrize("make", [honest, honest_noise])
def test_honest_defense_is_verified_under_other_seeds(
    make: Callable[[nn.Module], Trick], tmp_path: Path
) -> None:
    correct, found = checked(make, tmp_path / "run", Reattack(4, nonce="9"))
    assert correct < COUNT // 4
    assert found.status == "verified", found.problems
    assert bool(load_run(tmp_path / "run").records[f"attack/0/it/{ATTACK.name}"].draws) == (  # type: ignore[union-attr]
        make is honest_noise
    )


@pytest.mark.parametrize("make", [scores_better, draws_better])
def test_defense_that_recognizes_where_it_is_scored_is_found(
    make: Callable[[nn.Module], Trick], tmp_path: Path
) -> None:
    correct, found = checked(make, tmp_path / "run")
    assert correct == COUNT
    problems = [problem for problem in found.problems if "that nobody could know" in problem]
    assert problems
    assert all(problem.startswith("served: ") for problem in problems)


def test_defense_that_recognizes_attacks_is_found_when_they_run_from_another_seed(
    tmp_path: Path,
) -> None:
    """Its records repeat exactly from the recorded seeds."""
    correct, found = checked(misleads, tmp_path / "run", Reattack())
    assert correct > COUNT // 2
    (problem,) = found.problems
    assert problem.startswith("attacks: it: attacks from a seed that nobody could know leave 0 of")
    assert verify(tmp_path / "run", subject_of(misleads)).status == "verified"


def test_seed_follows_from_the_nonce_or_is_random() -> None:
    assert unknown_seed("9", "a") == unknown_seed("9", "a") != unknown_seed("8", "a")
    assert unknown_seed("9", "a") != unknown_seed("9", "b")
    assert unknown_seed() != unknown_seed()


def test_draws_are_compared_within_their_batch() -> None:
    same = [([3, 4, 3, 4], [4, 3, 4, 3]), ([90, 91, 90, 91], [91, 90, 91, 90])]
    assert p_value(same) == 1.0
    better = [([5, 5, 5, 5], [4, 4, 4, 4]), ([91, 91, 91, 91], [90, 90, 90, 90])]
    assert p_value(better) == 0.0
    assert p_value([(now, then) for then, now in better]) == 1.0
    noisy = [([50, 60, 70, 80], [48, 58, 71, 79])]
    assert 0.1 < p_value(noisy) < 0.9


def test_few_more_broken_members_are_no_problem() -> None:
    many, few = 40 * [(True, False)], 4 * [(True, False)]
    kept = 100 * [(True, True)]
    assert len(list(stronger_attacks({"it": many + kept}))) == 1
    assert not list(stronger_attacks({"it": few + kept}))
    assert not list(stronger_attacks({"it": many + 40 * [(False, True)] + kept}))
    assert not list(stronger_attacks({"it": 40 * [(False, True)] + kept}))


class CalledOtherwise(Trick):
    """Attacks call it, and it shows them another net than the one that is scored."""

    def forward(self, x: Tensor) -> Tensor:
        return robust()(x)


class CalledAtRandom(Trick):
    """Its answers always change: that is another diagnostic."""

    def predict(self, x: Tensor, adaptation: Any) -> Tensor:
        noise = torch.as_tensor(UNSEEDED.standard_normal((len(x), 4))).float()
        return super().predict(x, adaptation) + noise


UNSEEDED = np.random.default_rng()


def test_defense_that_predicts_otherwise_if_it_is_called_is_refused() -> None:
    settings = Settings(batch_size=SIZE, transfer=False)
    with pytest.raises(InputError, match=r"CalledOtherwise predicts otherwise if it is called"):
        evaluate(subject_of(CalledOtherwise), settings)
    assert evaluate(subject_of(CalledAtRandom), settings).status == "complete"


def test_defense_that_predicts_otherwise_if_it_is_called_by_now_fails_the_probes(
    tmp_path: Path,
) -> None:
    settings = Settings(batch_size=SIZE, transfer=False, until="end")
    evaluate(subject_of(Trick), settings, out=tmp_path / "run")
    changed = subject_of(Trick)
    object.__setattr__(changed.defenses["it"], "forward", robust())
    found = verify(tmp_path / "run", changed)
    assert any(
        problem.startswith("probes: probe/0/it/None: Trick predicts otherwise if it is called")
        for problem in found.problems
    )


class Spying(Tensor):
    """Logits that see every label that a loss gets with them."""

    seen: ClassVar[list[Tensor]] = []

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.seen += [each for each in args if type(each) is Tensor and each.dtype == torch.int64]
        return super().__torch_function__(func, types, args, kwargs or {})


class Spies(Trick):
    """Returns such logits, at least for queries with a gradient."""

    def __init__(self, net: nn.Module, always: bool = True) -> None:
        super().__init__(net)
        self.always = always

    def predict(self, x: Tensor, adaptation: Any) -> Tensor:
        logits = super().predict(x, adaptation)
        return logits.as_subclass(Spying) if self.always or x.requires_grad else logits


@pytest.mark.parametrize("always", [True, False])
def test_logits_that_could_see_the_labels_are_refused(*, always: bool) -> None:
    settings = Settings(batch_size=SIZE, transfer=False)
    with pytest.raises(InputError, match=r"Spies returned logits of the class .*Spying: return a"):
        evaluate(subject_of(lambda net: Spies(net, always)), settings)
    x, y = dataset().batch(range(SIZE))
    with pytest.raises(InputError, match=r"return a plain torch\.Tensor"):
        ATTACK(Spies(linear()), x, y, ThreatModel("linf", "24/255"), seed=0)
    assert not Spying.seen
