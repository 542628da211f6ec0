"""Memory that fresh copies of a defense share, and honest defenses that share none."""

import logging
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dent import DENT_PLUS, Dent
from dent.evaluation import Settings, Subject, evaluate, verify
from dent.evaluation.probe.questions import Probe
from dent.evaluation.submission.fresh import Origin
from dent.threat import ThreatModel
from tests.evaluation.subjects import make_dataset, make_model
from tests.evaluation.test_evaluation_suite_answers import X, Y, dataset
from tests.evaluation.test_evaluation_tricks import MASKED, NET
from tests.evaluation.tricks import Trick

STORE: list[Any] = []
LOG = logging.getLogger(__name__)


def shares(defense: nn.Module, x: Tensor = X[:12], y: Tensor = Y[:12]) -> bool | None:
    return Probe(Origin(defense), x, y, (0.0, 1.0), 5).shares()


class Keeps(list[Any]):
    """A list whose copy is the list itself."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "Keeps":
        return self


def in_a_closure() -> nn.Module:
    store: list[Tensor] = []

    class Remembers(Trick):
        def predict(self, x: Tensor, adaptation: Any) -> Tensor:
            store.extend(image for image in x if not any(image.equal(old) for old in store))
            return super().predict(x, adaptation)

    return Remembers(NET)


def in_a_numpy_array() -> nn.Module:
    seen = np.zeros(48)

    class Remembers(Trick):
        def predict(self, x: Tensor, adaptation: Any) -> Tensor:
            seen[:] = x[0].flatten().numpy()
            return super().predict(x, adaptation)

    return Remembers(NET)


def in_a_cache() -> nn.Module:
    @cache
    def box(key: float) -> list[Any]:
        return [key]

    class Remembers(Trick):
        def predict(self, x: Tensor, adaptation: Any) -> Tensor:
            for image in x:
                box(float(image[..., 0].sum()))
            return super().predict(x, adaptation)

    return Remembers(NET)


def in_a_class() -> nn.Module:
    class Remembers(Trick):
        store: dict[bytes, int] = {}  # noqa: RUF012 (shared on purpose)

        def predict(self, x: Tensor, adaptation: Any) -> Tensor:
            self.store |= {image.numpy().tobytes(): 0 for image in x}
            return super().predict(x, adaptation)

    return Remembers(NET)


def in_a_default() -> nn.Module:
    class Remembers(Trick):
        def predict(self, x: Tensor, adaptation: Any, seen: set[bytes] = set()) -> Tensor:  # noqa: B006
            seen.update(image.numpy().tobytes() for image in x)
            return super().predict(x, adaptation)

    return Remembers(NET)


def in_a_global() -> nn.Module:
    class Remembers(Trick):
        @staticmethod
        def note(x: Tensor) -> None:
            STORE.extend(x)

        def predict(self, x: Tensor, adaptation: Any) -> Tensor:
            self.note(x)
            return super().predict(x, adaptation)

    return Remembers(NET)


def in_what_copies_as_itself() -> nn.Module:
    class Remembers(Trick):
        def __init__(self, net: nn.Module) -> None:
            super().__init__(net)
            self.store = Keeps()

        def predict(self, x: Tensor, adaptation: Any) -> Tensor:
            self.store.extend(x)
            return super().predict(x, adaptation)

    return Remembers(NET)


@pytest.mark.parametrize(
    "make",
    [
        in_a_closure,
        in_a_numpy_array,
        in_a_cache,
        in_a_class,
        in_a_default,
        in_a_global,
        in_what_copies_as_itself,
    ],
)
def test_memory_that_copies_of_a_defense_share_is_found(make: Callable[[], nn.Module]) -> None:
    assert shares(make()) is True


def test_harmless_shared_objects_of_honest_defenses_are_not_memory() -> None:
    calls = [0]

    @cache
    def window(shape: tuple[int, ...], device: torch.device) -> Tensor:
        return torch.ones(shape, device=device)

    masks: dict[Any, Tensor] = {}

    class Honest(Trick):
        def __init__(self, net: nn.Module) -> None:
            super().__init__(net)
            self.seen: list[Tensor] = []  # copied with the defense
            self.log = LOG
            self.register_forward_hook(lambda module, inputs, output: None)

        @torch.no_grad()
        def note(self, x: Tensor) -> None:
            calls[0] += 1
            self.seen.append(x)
            self.log.debug("batch of %d", len(x))

        def predict(self, x: Tensor, adaptation: Any) -> Tensor:
            self.note(x)
            mask = masks.setdefault(x.shape, torch.ones_like(x[:1]))
            return super().predict(x * window(x.shape[1:], x.device) * mask, adaptation)

    assert shares(Honest(NET)) is False


@pytest.mark.parametrize("config", [DENT_PLUS, None], ids=["dent+", "compiled-or-plain"])
def test_dent_and_a_plain_model_share_no_memory(config: Any) -> None:
    model = make_model()
    x, y = make_dataset().batch(range(8))
    assert shares(model if config is None else Dent(model, config), x, y) is False


def test_shared_memory_of_a_defense_that_cannot_be_copied_is_unknown() -> None:
    class Stays(Trick):
        def __deepcopy__(self, memo: dict[int, Any]) -> "Stays":
            raise TypeError("no")

    assert shares(Stays(NET)) is None


def nearest() -> nn.Module:
    """Return a defense that repeats its first prediction for near images, in all of its copies."""
    store: list[tuple[Tensor, int]] = []

    class Remembers(Trick):
        def predict(self, x: Tensor, adaptation: Any) -> Tensor:
            z = super().predict(x, adaptation)
            rows = []
            for row, image in enumerate(x.detach().float()):
                near = [known for seen, known in store if (image - seen).abs().max() <= 0.07]
                if not near:
                    near = [int(z[row].detach().argmax())]
                    store.append((image.clone(), near[0]))
                rows.append(near[0])
            return z + 12 * nn.functional.one_hot(torch.tensor(rows), z.shape[1])

    return Remembers(NET)


def test_shared_memory_is_flagged_and_fails_verification_with_an_empty_memory(
    tmp_path: Path,
) -> None:
    def subject(defense: nn.Module) -> Subject:
        return Subject(NET, dataset(), {"it": defense}, [MASKED], ThreatModel("linf", "16/255"))

    found = evaluate(subject(nearest()), Settings(batch_size=12), out=tmp_path).defenses["it"]
    assert found.worst.served.correct > found.attacks[-1].served.total / 2
    assert "carries state" in [diagnostic.name for diagnostic in found.raised]
    checked = verify(tmp_path, subject(nearest()))  # its memory is empty, as in a new process
    assert checked.status == "failed"
    assert any("before the defense has seen any natural image" in each for each in checked.problems)
