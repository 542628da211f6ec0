"""Tests that queries leave out fooled members if, and only if, the members are independent."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dent.attacks import AttackResult, make
from dent.attacks.adaptive import Among, Majority
from dent.attacks.adaptive.standing import MemberSelection, Standing
from dent.attacks.querier import Querier, Queries
from dent.evaluation.submission.fresh import Origin, fresh
from dent.threat import ThreatModel
from tests.attacks.attack_toys import Company, Toy, linear, small_images

SETTINGS: dict[str, dict[str, Any]] = {
    "adaptive-stop-gradient": {"losses": "ce+margin", "targets": 2, "iterations": 4},
    "adaptive-bpda": {"losses": "hinge", "iterations": 4, "warm": True, "pool": 2, "stride": 0.5},
    "adaptive-unrolled": {"losses": "ce+margin", "iterations": 4, "warm": True},
    "gmsa-avg": {"rounds": 2, "iterations": 4, "targets": 2},
    "rays": {"iterations": 60},
}
THREAT = ThreatModel("linf", 0.05)


class Sized(nn.Module):
    """A plain module that records the number of members of every query."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.sizes = model, list[int]()
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        logits: Tensor = self.model(x)
        return logits


def subject() -> tuple[nn.Module, Tensor, Tensor]:
    """Return a model, images, and labels of which the first is naturally wrong."""
    x, model = small_images(8), linear()
    with torch.no_grad():
        y = model(x).argmax(1)
    y[0] = (y[0] + 1) % 4
    return model, x, y


def attacked(name: str, defense: Any, x: Tensor, y: Tensor) -> AttackResult:
    return make(name, **SETTINGS[name])(defense, x, y, THREAT, seed=0)


@pytest.mark.parametrize("name", SETTINGS)
def test_leaving_out_fooled_members_gives_the_same_result_for_the_others(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x, y = subject()
    sized = Sized(model)
    apart = attacked(name, sized, x, y)
    monkeypatch.setattr(MemberSelection, "without", lambda self, fallen: self._target)
    whole = attacked(name, Sized(model), x, y)
    assert torch.equal(apart.fooled, whole.fooled)
    assert 1 < int(whole.fooled.sum()) < len(x)  # some but not all members are fooled
    stands = ~whole.fooled
    torch.testing.assert_close(apart.adversarial[stands], whole.adversarial[stands])
    assert min(sized.sizes) <= int((~apart.fooled).sum()) + 2
    assert sized.sizes[0] == sized.sizes[-1] == len(x)  # the first and last query are whole
    if name != "rays":
        taken = torch.tensor(apart.gradients)
        most = torch.tensor(whole.gradients)
        assert torch.equal(taken[stands], most[stands])
        assert taken[0] < most[0]


class Noisy(Toy):
    """Adds noise from torch's global generator."""

    def predict(self, x: Tensor, adaptation: Any) -> Tensor:
        logits: Tensor = self.model(x)
        return logits + 0.01 * torch.randn(logits.shape)


class OwnNoise(Toy):
    """Adds noise from its own generator."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.draws = torch.Generator().manual_seed(0)

    def predict(self, x: Tensor, adaptation: Any) -> Tensor:
        logits: Tensor = self.model(x)
        return logits + 0.01 * torch.randn(logits.shape, generator=self.draws)


def in_an_evaluation(model: nn.Module) -> Any:
    return fresh(Origin(OwnNoise(model)), 0)


def among(model: nn.Module) -> Among:
    x, y = small_images(10), torch.zeros(10, dtype=torch.int64)
    return Among(Toy(model), x, y, torch.arange(10) < 8)


@pytest.mark.parametrize("name", ["adaptive-stop-gradient", "rays"])
@pytest.mark.parametrize(
    "make_defense",
    [
        Company,
        Noisy,
        OwnNoise,
        in_an_evaluation,
        among,
        lambda model: Majority(Noisy(model), 2),
    ],
)
def test_queries_stay_whole_if_fooled_members_may_become_correct_again(
    make_defense: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x, y = subject()
    asked: list[Tensor | None] = []
    original = Querier.__call__

    def call(self: Querier, images: Tensor, *rest: Any, **options: Any) -> Tensor:
        asked.append(rest[2] if len(rest) > 2 else options.get("members"))
        assert len(images) == len(x)
        return original(self, images, *rest, **options)

    monkeypatch.setattr(Querier, "__call__", call)
    attacked(name, make_defense(model), x, y)
    assert asked
    assert all(members is None for members in asked)


def test_gradient_is_counted_only_for_the_members_that_it_was_asked_for() -> None:
    model, x, y = subject()
    target = Querier(model, x, y, THREAT, plan=lambda _: Queries(0, 0))
    images = x[[1, 4, 6]].requires_grad_()
    logits = target(images, asked=torch.tensor([0, 2]), members=torch.tensor([1, 4, 6]))
    torch.autograd.grad(logits.sum(), images)
    assert target.gradients.tolist() == [0, 1, 0, 0, 0, 0, 1, 0]


def test_a_querier_of_some_members_has_every_attribute_and_method_of_a_querier() -> None:
    model, x, y = subject()
    told: list[tuple[int, int]] = []
    whole = Querier(
        model, x, y, THREAT, plan=lambda _: Queries(3, 1), shared_seed=7,
        progress=lambda done, planned: told.append((done, planned)),
    )  # fmt: skip
    members = torch.tensor([1, 4, 6])
    part = Standing(whole, members)
    assert part.shared_seed == 7
    assert vars(whole).keys() <= vars(part).keys()
    images = x[members].requires_grad_()
    logits, finite = part.submit(images, asked=torch.tensor([0, 2]))
    torch.testing.assert_close(logits, model(x[members]))
    assert finite.tolist() == [True] * 3
    torch.autograd.grad(logits.sum(), images)
    part.count(Queries(1, 0))
    assert part.done == whole.done == Queries(2, 1)
    assert part.gradients.tolist() == [1, 0, 1]
    assert whole.gradients.tolist() == [0, 1, 0, 0, 0, 0, 1, 0]
    assert part.zero_by_member.tolist() == [0, 0, 0]
    assert part.non_finite == whole.non_finite == 0
    part.finish()
    assert told[-2:] == [(3, 4), (4, 4)]


def test_queries_of_some_members_count_as_whole_passes() -> None:
    model, x, y = subject()
    found = attacked("adaptive-stop-gradient", model, x, y)
    planned = make("adaptive-stop-gradient", **SETTINGS["adaptive-stop-gradient"]).queries(4)
    assert planned.forwards // 2 < found.queries <= planned.forwards
