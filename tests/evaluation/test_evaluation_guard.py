"""The static model does not change, even if a defense writes into it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dent.defenses import AntiAdversary, TentOnline
from dent.errors import InputError
from dent.evaluation import Settings, estimate, evaluate, load_run
from dent.evaluation.submission.guard import put_back
from dent.models.weights import weights_digest
from tests.evaluation.subjects import SIDE, Push, Wrapper, make_model, make_subject

TWO = Settings(n=8, batch_size=4)


class Writing(Wrapper):
    """Adapts the given model in place, as published code often does."""

    def __init__(self, model: nn.Module, write: Callable[[Tensor], object], after: int) -> None:
        super().__init__(model)
        self.write, self.after = write, after

    def adapt(self, x: Tensor) -> Any:
        del x
        self.after -= 1
        if self.after < 0:
            with torch.no_grad():
                self.write(next(self.model.parameters()))


def counted(weight: Tensor) -> None:
    weight.mul_(1.01)


def uncounted(weight: Tensor) -> None:
    weight.data.copy_(weight.data * 1.01)


@pytest.mark.parametrize("write", [counted, uncounted])
def test_a_defense_that_writes_into_the_static_model_is_refused(
    write: Callable[[Tensor], object], tmp_path: Path
) -> None:
    model = make_model()
    subject = make_subject({"tent": Writing(model, write, after=0)}, [Push()], model=model)
    with pytest.raises(InputError, match=r"'tent' wrote into the static model.*deepcopy"):
        evaluate(subject, TWO, out=tmp_path / "run")
    # Only the static probe is recorded, which ran before the write.
    assert list(load_run(tmp_path / "run").records) == ["probe/0/static/None"]


class Running(Wrapper):
    """Declares its state and restores it, but the state is the static model."""

    batch_dependent = stateful = True

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.kept = self.snapshot()

    def adapt(self, x: Tensor) -> Any:
        del x
        with torch.no_grad():
            next(self.model.parameters()).add_(0.01)

    def reset(self) -> None:
        self.restore(self.kept)

    def snapshot(self) -> dict[str, Tensor]:
        return {name: each.clone() for name, each in self.model.state_dict().items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        self.model.load_state_dict(state)


def test_a_stream_that_writes_into_the_static_model_is_refused() -> None:
    model = make_model()
    subject = make_subject({"tent": Running(model)}, [Push()], model=model)
    with pytest.raises(InputError, match="'tent' wrote into the static model"):
        evaluate(subject, TWO)
    own = make_subject({"tent": Running(make_model())}, [Push()], model=model)
    assert evaluate(own, TWO).status == "complete"


def test_a_write_after_some_queries_changes_no_result_and_is_flagged() -> None:
    model = make_model()
    before = weights_digest(model)
    late = Writing(model, lambda weight: weight.mul_(-1), after=7)
    honest = evaluate(make_subject({"late": Wrapper(model)}, [Push()], model=model), TWO)
    found = evaluate(make_subject({"late": late}, [Push()], model=model), TWO)
    # All scores come from copies that have had fewer than seven queries.
    assert found.defenses["late"].worst == honest.defenses["late"].worst
    assert {each.name for each in found.defenses["late"].raised} == {"carries state"}
    assert not honest.defenses["late"].raised
    assert weights_digest(model) == before


def test_estimate_refuses_a_defense_that_writes_into_the_static_model() -> None:
    model = make_model()
    subject = make_subject({"tent": Writing(model, counted, after=0)}, [Push()], model=model)
    with pytest.raises(InputError, match="'tent' wrote into the static model"):
        estimate(subject, TWO)


def test_a_defense_may_write_into_its_own_model_or_undo_its_writes() -> None:
    model = make_model()
    own = Writing(make_model(), counted, after=0)
    before = weights_digest(own)
    estimate(make_subject({"own": own}, [Push()], model=model), TWO)
    assert weights_digest(own) == before  # so a resumed run has the same specification
    evaluate(make_subject({"own": own}, [Push()], model=model), TWO)
    assert weights_digest(own) == before  # the run queries copies
    assert own.after == 0

    def touch_and_put_back(weight: Tensor) -> None:
        weight.mul_(2).div_(2)

    same = Writing(model, touch_and_put_back, after=0)
    evaluate(make_subject({"same": same}, [Push()], model=model), TWO)


class Counting(AntiAdversary):
    """A reference defense that writes into its own buffer."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.register_buffer("count", torch.zeros(()))

    def _start(self, x: Tensor) -> Tensor:
        self.get_buffer("count").add_(1)
        return super()._start(x)


def test_put_back_restores_a_reference_defense_and_does_not_write_to_its_model() -> None:
    model = make_model()
    defense = Counting(model)
    counts = [weight._version for weight in model.parameters()]
    with put_back(defense):
        defense(torch.rand(2, 3, SIDE, SIDE))
        assert defense.get_buffer("count") == 1
    assert defense.get_buffer("count") == 0
    with put_back(TentOnline(model)):
        pass
    assert [weight._version for weight in model.parameters()] == counts


def test_put_back_restores_the_weights_after_an_exception() -> None:
    own = Writing(make_model(), counted, after=0)
    before = weights_digest(own)

    def crash() -> None:
        with put_back(own):
            own.adapt(torch.zeros(1))
            assert weights_digest(own) != before
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        crash()
    assert weights_digest(own) == before
