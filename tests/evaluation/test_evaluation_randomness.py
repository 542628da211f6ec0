"""Randomized defenses: public and private randomness, and the resubmission risk."""

import random
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dent import ThreatModel
from dent.adaptation.random_state import global_draws
from dent.attacks import make
from dent.attacks.adaptive.standing import MemberSelection
from dent.attacks.querier import Querier, Queries
from dent.data.dataset import ArrayDataset
from dent.errors import ConfigError
from dent.evaluation import Settings, Subject, evaluate, load_run
from dent.evaluation.records.spec import EvaluationSpec
from dent.evaluation.results.result import Count, EvaluationResult, Repeated
from dent.evaluation.results.scoring import Piece, worst_of_batch
from dent.evaluation.results.worst_case import resubmission_risk
from dent.evaluation.subject import describe
from dent.evaluation.submission.fresh import Origin, fresh
from dent.evaluation.submission.submission import submit
from dent.evaluation.verification.reattack import Reattack
from dent.evaluation.verification.verify import verify
from dent.report import wording
from dent.report.commands import commands
from dent.report.limits import limits

CPU = torch.device("cpu")


class Away(nn.Module):
    """Predicts class 0 if the mean of the image differs from 1/2 by at least 0.1."""

    def forward(self, x: Tensor) -> Tensor:
        away = (x.flatten(1).mean(1) - 0.5).abs()
        return torch.stack([away, torch.full_like(away, 0.1)], dim=1)


class Noisy(nn.Module):
    """Adds noise to its input and does nothing else: each image gets brighter or darker by 0.15.

    An attack with eps 0.08 fools it if the attack knows the sign of the noise. Otherwise the attack
    assumes the wrong sign in half of all draws.
    """

    batch_dependent = False

    def __init__(self, model: nn.Module, own: bool = False) -> None:
        super().__init__()
        self.model = model
        self.draws = torch.Generator().manual_seed(0) if own else None

    def adapt(self, x: Tensor) -> Tensor:
        coins = torch.rand(len(x), generator=self.draws).round() * 2 - 1
        return 0.15 * coins.reshape(-1, 1, 1, 1)

    def predict(self, x: Tensor, adaptation: Tensor) -> Tensor:
        logits: Tensor = self.model(x + adaptation)
        return logits

    def forward(self, x: Tensor) -> Tensor:
        return self.predict(x, self.adapt(x))

    def unwrap(self) -> nn.Module:
        return self.model


class Everywhere(Noisy):
    """Draws from its own generator and those of PyTorch and NumPy, in `adapt` and in `predict`."""

    def _noise(self) -> Tensor:
        kept = torch.rand((), generator=self.draws)
        return kept + torch.rand(()) + float(np.random.rand())  # noqa: NPY002

    def adapt(self, x: Tensor) -> Tensor:
        return super().adapt(x) + 0.01 * self._noise()

    def predict(self, x: Tensor, adaptation: Tensor) -> Tensor:
        return super().predict(x, adaptation) + self._noise()


def subject(defense: nn.Module, attack: Any = None) -> Subject:
    """Return a subject with gray images of class 0. The noise moves their mean away from 1/2."""
    dataset = ArrayDataset(
        name="grey",
        split="test",
        classes=("away", "near"),
        pixels=np.full((16, 4, 4, 3), 128, dtype=np.uint8),
        labels=np.zeros(16, dtype=np.int64),
        sample_ids=tuple(range(16)),
    )
    attack = attack or make("adaptive-stop-gradient", losses="margin", iterations=5)
    model = Away().eval()
    return Subject(model, dataset, {"noisy": defense}, [attack], ThreatModel("linf", 0.08))


def attacked(defense: nn.Module, randomness: Any, out: Path | None = None) -> EvaluationResult:
    settings = Settings(batch_size=8, static=False, transfer=False, randomness=randomness)
    return evaluate(subject(defense), settings, out=out)


@pytest.mark.parametrize("own", [False, True], ids=["global", "own"])
def test_noise_only_defense_is_robust_only_under_private_randomness(
    own: bool, tmp_path: Path
) -> None:
    """If the attacker knows the seed, the robust accuracy of a noise-only defense is 0.

    Reports, commands, verification and re-attacks use the setting as well.
    """
    results = {
        randomness: attacked(Noisy(Away(), own).eval(), randomness, tmp_path / randomness)
        for randomness in ("private", "public")
    }
    left = {name: each.defenses["noisy"].worst.served for name, each in results.items()}
    assert left["public"].correct == 0
    assert (left["private"].share or 0) > 0.3
    assert all(each.defenses["noisy"].natural.share == 1 for each in results.values())
    # Under a known seed all submissions give the same predictions, so none is repeated.
    repeated = results["private"].defenses["noisy"].repeated
    assert repeated is not None
    assert repeated.risk[-1] > repeated.risk[0] + 0.1
    assert results["public"].defenses["noisy"].repeated is None
    (claimed,) = (each for each in results["public"].defenses["noisy"].attacks if each.claimed)
    assert claimed.claimed is not None
    assert claimed.claimed.correct == 0
    assert claimed.claimed_but_served == 0
    public = results["public"]
    assert "public randomness" in wording.title(public.spec)
    assert any("Randomness is public" in sentence for sentence in limits(public))
    assert any("Randomness is private" in sentence for sentence in limits(results["private"]))
    assert "--randomness public" in commands(load_run(tmp_path / "public")).again
    assert "--randomness" not in commands(load_run(tmp_path / "private")).again
    again = subject(Noisy(Away(), own).eval())
    verified = verify(tmp_path / "public", again, reattack=Reattack())
    assert verified.problems == ()
    assert verified.reattacked is not None
    assert verified.reattacked.same == 2


@pytest.mark.parametrize(
    "draw",
    [
        lambda: np.random.rand(13, 3, 32, 32),  # noqa: NPY002 - ends where NumPy's block began
        np.random.rand,
        random.random,
        lambda: torch.rand(1),
    ],
)
def test_global_draws_changes_with_a_draw_from_any_global_generator(
    draw: Callable[[], object],
) -> None:
    before = global_draws(CPU)
    assert before == global_draws(CPU)
    draw()
    assert before != global_draws(CPU)


def test_global_draws_changes_when_numpy_uses_its_cached_normal_number() -> None:
    np.random.seed(0)  # noqa: NPY002
    np.random.randn()  # noqa: NPY002
    before = global_draws(CPU)
    np.random.randn()  # noqa: NPY002
    assert before != global_draws(CPU)


@pytest.mark.parametrize("dynamic", [True, False], ids=["dynamic", "module"])
def test_queries_under_a_known_seed_equal_the_submission(dynamic: bool) -> None:
    x = torch.rand(4, 3, 4, 4)
    defense: Any = Everywhere(Away(), own=True).eval()
    if not dynamic:
        defense = nn.Sequential(Static(defense)).eval()
    served = submit(Origin(defense).new(7).defense, x, seed=7).logits
    before = global_draws(CPU)
    asked: Any = fresh(Origin(defense), 1, known=7)
    for _ in range(2):
        assert torch.equal(asked(x), served)
    if dynamic:
        adapted = asked.adapt(x)
        for _ in range(2):
            assert torch.equal(asked.predict(x, adapted), served)
        assert torch.equal(asked.over(defense)(x), served)
    assert before == global_draws(CPU)
    assert asked.drew
    for known in (8, None):
        assert not torch.equal(fresh(Origin(defense), 1, known=known)(x), served)  # type: ignore[operator]


class Static(nn.Module):
    """A defense as a plain module, which has only `forward`."""

    def __init__(self, defense: nn.Module) -> None:
        super().__init__()
        self.defense = defense

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.defense(x)
        return logits


def test_no_member_is_left_out_of_a_batch_with_known_noise() -> None:
    """At another position in the batch, a member would get other noise."""
    x, y = torch.rand(4, 3, 4, 4), torch.zeros(4, dtype=torch.int64)
    asked = fresh(Origin(Noisy(Away()).eval()), 1, known=7)
    target = Querier(
        asked, x, y, ThreatModel("linf", 0.1), plan=lambda classes: Queries(classes, 0)
    )
    selection = MemberSelection(target)
    target(x)
    assert selection.without(torch.tensor([True, False, False, False])) is target


def test_noise_that_cannot_be_seeded_stays_random_under_public_randomness() -> None:
    class Clock(Noisy):
        def adapt(self, x: Tensor) -> Tensor:
            coins = torch.from_numpy(np.random.default_rng().integers(0, 2, len(x)) * 2.0 - 1)
            return 0.15 * coins.float().reshape(-1, 1, 1, 1)

    found = attacked(Clock(Away()).eval(), "public").defenses["noisy"]
    assert found.repeated is not None
    assert (found.worst.served.share or 0) > 0


def test_spec_omits_private_randomness_and_records_public_randomness() -> None:
    specs = {
        randomness: describe(subject(Noisy(Away()).eval()), Settings(randomness=randomness))  # type: ignore[arg-type]
        for randomness in ("private", "public")
    }
    assert "randomness" not in specs["private"].to_json()["settings"]
    assert specs["public"].to_json()["settings"]["randomness"] == "public"
    assert specs["private"].identity != specs["public"].identity
    for spec in specs.values():
        assert EvaluationSpec.model_validate(spec.to_json()).identity == spec.identity


def test_public_randomness_with_the_published_protocol_is_refused() -> None:
    published = subject(Noisy(Away()).eval(), make("apgd-ce", protocol="published"))
    with pytest.raises(ConfigError, match="randomness='public' needs protocol='frozen'"):
        describe(published, Settings(randomness="public"))
    with pytest.raises(ConfigError, match="randomness"):
        Settings(randomness="known")


def test_worst_case_is_the_strongest_submission_despite_few_draws() -> None:
    """One strong submission leaves 20% correct, and 30 weak submissions leave 60% each.

    With few draws, a weak submission often seems to be the worst one of a member by chance.
    """
    rng, members, draws = np.random.default_rng(0), 512, 5

    def drawn(chance: float) -> tuple[float, ...]:
        return tuple(rng.binomial(draws, chance, members) / draws)

    def piece(chance: float) -> Piece:
        return Piece(attacked=drawn(chance), clean=(), missing=0, choosing=drawn(chance))

    pieces = {"strong": piece(0.2), **{f"weak {k}": piece(0.6) for k in range(30)}}
    rights, breaking = worst_of_batch(pieces, by_sample=True)
    assert rights == pieces["strong"].attacked
    assert set(breaking) == {"strong"}
    # If each half is broken by another submission, the per-sample worst case combines both.
    half = (1.0,) * 4 + (0.0,) * 4
    apart = {
        name: Piece(attacked=of, clean=(), missing=0, choosing=of)
        for name, of in (("first", half), ("second", half[::-1]))
    }
    assert worst_of_batch(apart, by_sample=True)[0] == (0.0,) * 8
    assert worst_of_batch(apart, by_sample=False)[0] == half


def test_resubmission_risk_is_the_mean_over_all_subsets_of_draws() -> None:
    draws = torch.rand(7, 5, generator=torch.Generator().manual_seed(0)) < 0.7  # member, draw
    found = resubmission_risk(draws.double().mean(1).tolist(), 5)
    for n, risk in enumerate(found, start=1):
        wrong = [
            (~draws[:, list(some)]).any(1).double().mean() for some in combinations(range(5), n)
        ]
        assert risk == pytest.approx(float(torch.stack(wrong).mean()))
    assert list(found) == sorted(found)
    assert resubmission_risk([1.0, 1.0], 3) == (0.0, 0.0, 0.0)
    assert resubmission_risk([0.0, 1.0], 2) == (0.5, 0.5)


def test_resubmission_risk_is_reported_in_one_sentence() -> None:
    repeated = Repeated(
        draws=5,
        natural=1.0,
        robust=0.6,
        natural_always=Count.of(9, 10),
        robust_always=Count.of(4, 10),
        risk=(0.4, 0.45, 0.5, 0.55, 0.6),
        natural_risk=(0.0, 0.0, 0.0, 0.05, 0.1),
    )
    (sentence,) = wording.resubmission(repeated)
    assert "40.0% in 1, 45.0% in 2, 60.0% in 5. Of natural images 10.0% in 5." in sentence
    assert wording.resubmission(None) == ()
    older = repeated.model_copy(update={"risk": (), "natural_risk": ()})
    assert wording.resubmission(older) == ()
