"""Attacked streams of a defense whose state after each batch has a closed form."""

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import final

import pytest
import torch
from torch import Tensor, nn

from dent.attacks import Attack, Outcome, Querier
from dent.defenses import TestTimeAdaptation
from dent.errors import ConfigError, InputError, UnsupportedModelError
from dent.evaluation import StreamResult, stream
from dent.report import stream_figure
from dent.threat import ThreatModel

EPS, KEPT, BATCH = 0.1, 0.5, 4
THREAT = ThreatModel("linf", EPS)


class Scores(nn.Module):
    """Predicts class 0 if an image is brighter than a level."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("level", torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        score = x.flatten(1).mean(1) - self.level
        return torch.stack([score, -score], dim=1)


class RunningMean(nn.Module):
    """Predicts with the current level, then moves it halfway to the brightness of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Scores()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x)
        self.model.level = KEPT * self.model.level + (1 - KEPT) * x.mean().detach()
        return logits

    def reset(self) -> None:
        self.model.level = torch.tensor(0.5)


@final
@dataclass(frozen=True)
class Lift(Attack):
    """Makes every image brighter by a share of eps. Bright images stay correct."""

    share: float = 1.0

    def run(self, target: Querier, threat: ThreatModel, seed: int) -> Outcome:
        del seed
        images = threat.project(target.natural + self.share * threat.eps, target.natural)
        return Outcome(images, target(images).argmax(dim=1) != target.labels)


def grey(brightness: float) -> Tensor:
    """Return a batch: two images slightly brighter than a level, and two slightly darker."""
    offsets = torch.tensor([0.04, 0.02, -0.02, -0.04])
    return (brightness + offsets).reshape(BATCH, 1, 1, 1).expand(BATCH, 3, 2, 2).contiguous()


IMAGES = torch.cat([grey(0.5) for _ in range(6)])
LABELS = torch.tensor([0, 0, 1, 1] * 6)


def lifted(**changes: object) -> StreamResult:
    settings: dict[str, object] = {"batch_size": BATCH, "poisoned": 2, "aim": "later"} | changes
    attacks = settings.pop("attacks", [Lift()])
    defense = TestTimeAdaptation(RunningMean(), Scores().eval())
    return stream(defense, IMAGES, LABELS, attacks, THREAT, **settings)  # type: ignore[arg-type]


def expected(poisoned: int) -> list[int]:
    """Return the number of correct members of each batch, by the closed form of the level."""
    level, right = 0.5, []
    for index in range(6):
        lift = EPS if index < poisoned else 0.0
        brightness = [0.5 + offset + lift for offset in (0.04, 0.02, -0.02, -0.04)]
        answers = [value > level for value in brightness]
        right.append(sum(a == b for a, b in zip(answers, (True, True, False, False), strict=True)))
        level = KEPT * level + (1 - KEPT) * (0.5 + lift)
    return right


@pytest.mark.parametrize("poisoned", [1, 2, 3])
def test_poisoned_batches_change_later_batches_as_the_closed_form_predicts(poisoned: int) -> None:
    result = lifted(poisoned=poisoned)
    assert [batch.served.correct for batch in result.batches] == expected(poisoned)
    assert [batch.unattacked.correct for batch in result.batches] == [4] * 6
    assert [batch.attacked for batch in result.batches] == [True] * poisoned + [False] * (
        6 - poisoned
    )
    # After a reset before each batch, only the attacked batches have wrong predictions.
    assert [batch.after_reset.correct for batch in result.batches] == [2] * poisoned + [4] * (
        6 - poisoned
    )
    later = expected(poisoned)[poisoned:]
    assert result.cumulative == pytest.approx(sum(later) / (4 * len(later)) - 1)
    assert result.instant == pytest.approx(sum(expected(poisoned)[:poisoned]) / (4 * poisoned) - 1)
    assert result.cumulative < 0
    assert result.reset_restores


def test_aim_decides_which_of_two_attacks_is_used() -> None:
    """A small lift fools its own batch just as well, but it moves the level less."""
    small, large = Lift(0.5, name="small"), Lift(1.0, name="large")
    now = lifted(attacks=[small, large], poisoned=1, aim="now")
    later = lifted(attacks=[small, large], poisoned=1, aim="later")
    assert (now.batches[0].by, later.batches[0].by) == ("small", "large")
    assert later.cumulative < now.cumulative


def test_stream_does_not_change_the_defense_and_is_reproducible() -> None:
    defense = TestTimeAdaptation(RunningMean(), Scores().eval())
    defense(IMAGES[:4] + 0.2)
    before = float(defense.method.model.level)
    results = [
        stream(defense, IMAGES, LABELS, [Lift()], THREAT, batch_size=BATCH, poisoned=2, aim="later")
        for _ in range(2)
    ]
    assert float(defense.method.model.level) == before
    assert results[0] == results[1] == lifted()
    assert StreamResult.model_validate_json(results[0].model_dump_json()) == results[0]


def test_reset_that_does_not_restore_the_state_is_reported() -> None:
    class Keeps(RunningMean):
        def reset(self) -> None:
            """Do nothing, so that the state stays."""

    defense = TestTimeAdaptation(Keeps(), Scores().eval())
    result = stream(defense, IMAGES, LABELS, [Lift()], THREAT, batch_size=BATCH, poisoned=1)
    assert not result.reset_restores


def test_sentence_states_the_effect_on_later_batches_and_the_figure_is_reproducible(
    tmp_path: Path,
) -> None:
    result = lifted()
    later = expected(2)[2:]
    points = round(100 * (sum(later) / 16 - 1), 1)
    assert f"\N{MINUS SIGN}{-points} points on the clean images that came later" in result.sentence
    first, second = (stream_figure(result, tmp_path / name) for name in ("a.svg", "b.svg"))
    assert first.read_bytes() == second.read_bytes()
    assert b"svg" in first.read_bytes()[:400]
    with pytest.raises(ConfigError, match="must end in"):
        stream_figure(result, tmp_path / "a.txt")


def test_a_defense_that_cannot_be_copied_after_its_first_batch_is_refused() -> None:
    class Locks(RunningMean):
        def forward(self, x: Tensor) -> Tensor:
            self.lock = threading.Lock()
            return super().forward(x)

    defense = TestTimeAdaptation(Locks(), Scores().eval())
    with pytest.raises(UnsupportedModelError, match=r"cannot be copied.*after every batch"):
        stream(defense, IMAGES, LABELS, [Lift()], THREAT, batch_size=BATCH, poisoned=3)


def test_invalid_stream_arguments_are_refused() -> None:
    defense = TestTimeAdaptation(RunningMean(), Scores().eval())
    for poisoned in (0, 6, True):
        with pytest.raises(ConfigError, match="1 to 5"):
            lifted(poisoned=poisoned)
    for batch_size in (0, -1, 2.0):
        with pytest.raises(ConfigError, match="batch_size"):
            stream(defense, IMAGES, LABELS, [Lift()], THREAT, batch_size=batch_size, poisoned=1)
    with pytest.raises(ConfigError, match="'now' or 'later'"):
        lifted(aim="soon")
    with pytest.raises(ConfigError, match="at least one attack"):
        lifted(attacks=[])
    with pytest.raises(UnsupportedModelError, match="TestTimeAdaptation"):
        stream(Scores().eval(), IMAGES, LABELS, [Lift()], THREAT, batch_size=4, poisoned=1)
    with pytest.raises(InputError, match="labels must be integers"):
        stream(defense, IMAGES, LABELS[:5], [Lift()], THREAT, batch_size=4, poisoned=1)
