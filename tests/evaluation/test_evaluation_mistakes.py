"""Two diagnostics: accuracy at chance level, and adaptation steps that change nothing."""

import warnings
from collections.abc import Iterator
from dataclasses import replace
from math import comb

import pytest
import torch
from torch import Tensor, nn

from dent import Dent, DentConfig
from dent.defenses import TentOnline
from dent.errors import InputError
from dent.evaluation import EvaluationResult, Settings, evaluate
from dent.evaluation.results.mistakes import AT_CHANCE, NOTHING_MOVED, suspicions
from dent.evaluation.results.result import Count
from dent.evaluation.results.scoring import Scores
from tests.configurations import Around
from tests.evaluation.subjects import SIDE, SMALL, Guess, Push, make_model, make_subject

STEPS = DentConfig(steps=2, lr=0.01)
NOBODY = Scores({}, {}, None, ())


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _raised(result: EvaluationResult, defense: str) -> set[str]:
    return {flag.name for flag in result.defenses[defense].raised} & {AT_CHANCE, NOTHING_MOVED}


class _Scaled(Around):
    """The model with scaled pixels or scaled logits."""

    pixels, logits = 1.0, 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x * self.pixels) * self.logits  # type: ignore[no-any-return]


def test_working_defense_of_an_accurate_model_raises_neither_diagnostic() -> None:
    result = evaluate(make_subject(attacks=[Push()]), SMALL)
    assert result.defenses["static"].natural.share == 0.85
    assert not _raised(result, "dent")
    assert not _raised(result, "static")


def test_defense_whose_steps_change_nothing_is_flagged() -> None:
    model = _Scaled(make_model()).eval()
    model.logits = 1e6
    defenses = {"idle": Dent(model, STEPS), "none": Dent(model, replace(STEPS, steps=0))}
    result = evaluate(make_subject(defenses, [Push(), Guess()], model=model), SMALL)
    assert _raised(result, "idle") == {NOTHING_MOVED}
    (flag,) = (flag for flag in result.defenses["idle"].raised if flag.name == NOTHING_MOVED)
    assert flag.sentence.startswith("No step changed the entropy in ")
    assert not _raised(result, "none")  # it has no steps
    assert not _raised(result, "static")


def test_online_defense_whose_steps_change_later_batches_is_not_flagged() -> None:
    model = make_model()
    online = TentOnline(model)
    result = evaluate(make_subject({"online": online}, [Push()], model=model), SMALL)
    entropy = result.defenses["online"].trace.entropy
    assert entropy is not None
    assert len(entropy) == 2
    assert entropy[0] == entropy[1]  # it predicts before its step
    assert not _raised(result, "online")
    assert "carries state" in {flag.name for flag in result.defenses["online"].raised}


def test_model_at_chance_level_is_flagged_with_and_without_a_defense() -> None:
    class Constant(_Scaled):
        def forward(self, x: Tensor) -> Tensor:
            return self.model(x) * 1e-3 + torch.eye(4)[1]

    model = Constant(make_model()).eval()
    subject = make_subject({"dent": Dent(model, STEPS)}, [Push()], model=model)
    result = evaluate(subject, Settings(n=40, batch_size=8))
    share = result.defenses["static"].natural.share
    assert share is not None
    assert 0.1 < share < 0.4  # of 4 classes
    assert AT_CHANCE in _raised(result, "static") & _raised(result, "dent")


@pytest.mark.parametrize(
    ("correct", "total", "classes", "flagged"),
    [
        (28, 256, 10, True),  # 10.9%, as for a wrong pixel range
        (0, 16, 10, True),
        (40, 256, 10, False),  # low, but above chance
        (1150, 10000, 10, True),  # significantly above 1/10, but hardly
        (1300, 10000, 10, False),
        (3, 512, 1000, False),  # six times chance
        (1, 512, 1000, True),
        (52, 100, 2, True),
        (80, 100, 2, False),
        (1, 9, 10, False),  # too few samples
        (30, 30, 1, False),
    ],
)
def test_accuracy_at_chance_level_is_flagged_by_a_binomial_test(
    correct: int, total: int, classes: int, flagged: bool
) -> None:
    found = suspicions(Count.of(correct, total), classes, NOBODY)
    assert [each.name for each in found] == [AT_CHANCE] * flagged
    if flagged:  # the upper tail of the binomial distribution
        p = min(1.25 / classes, 1 / classes + 0.02 * (1 - 1 / classes))
        if total < 600:
            below = sum(comb(total, k) * p**k * (1 - p) ** (total - k) for k in range(correct))
            assert found[0].value == pytest.approx(1 - below, abs=1e-9)


class _Forwards(Around):
    """Inverts the images in `forward`, and forwards all other attributes to its defense."""

    def __getattr__(self, name: str) -> object:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(1 - x)  # type: ignore[no-any-return]


def test_wrapper_that_forwards_adapt_and_predict_to_a_defense_is_refused() -> None:
    model = make_model()
    subject = make_subject({"wrapped": _Forwards(Dent(model, STEPS)).eval()}, model=model)
    with pytest.raises(InputError, match="answers adapt and predict by another object"):
        evaluate(subject, SMALL)


class _Drawing(nn.Module):
    """Adds noise from its own generator, as randomized models do."""

    def __init__(self) -> None:
        super().__init__()
        self.model, self.source = make_model(), torch.Generator().manual_seed(5)

    def forward(self, x: Tensor) -> Tensor:
        noise = torch.randn(x.shape, generator=self.source)
        return self.model(x + 0.05 * noise)  # type: ignore[no-any-return]


def test_generator_inside_a_model_is_seeded_by_the_run() -> None:
    def run(defense: str, draws_before: int) -> EvaluationResult:
        model = _Drawing().eval()
        for _ in range(draws_before):
            model(torch.rand(2, 3, SIDE, SIDE))
        dent = Dent(model, STEPS)
        return evaluate(make_subject({defense: dent}, [Guess(), Push()], model=model), SMALL)

    first, second = run("dent", 0), run("dent", 3)
    for name in ("static", "dent"):
        one, other = first.defenses[name], second.defenses[name]
        assert one.natural == other.natural
        assert [each.served for each in one.attacks] == [each.served for each in other.attacks]
        assert one.trace == other.trace
        raised = {flag.name for flag in one.raised}
        assert "randomized" in raised
        assert "carries state" not in raised
