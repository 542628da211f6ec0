"""Wrong arguments of public calls raise the library's own errors."""

import dataclasses
import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from dent import DENT_PLUS, ConfigError, Dent, DentError, UnsupportedModelError, defenses
from dent.attacks import AutoAttack, from_factory, make, make_from, names, settings_of
from dent.attacks.adaptive import AdaptiveAPGD, Majority, Rung
from dent.attacks.foreign import Foreign
from tests.attacks.attack_toys import linear

WRONG: tuple[Any, ...] = (
    True, 1.5, -1, 0, "x", "2", [], (0,), (0, 1, 2), ["ce"], [["ce"]], {}, math.nan, math.inf,
    10**400, b"x", object(), DENT_PLUS,
)  # fmt: skip
DEFENSES: tuple[Callable[..., Any], ...] = (
    Dent,
    defenses.AntiAdversary,
    defenses.ET3,
    defenses.Hedge,
    defenses.MeanSparse,
    defenses.MedBN,
    defenses.Purifier,
    defenses.StatisticsPrior,
    defenses.TentOnline,
)


class Method(nn.Module):
    """A method of test-time adaptation that does nothing."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def reset(self) -> None: ...


def small() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()


def accepted(call: Callable[..., Any], **arguments: Any) -> bool:
    """Return whether a call takes its arguments; only errors of the library pass."""
    try:
        call(**arguments)
    except DentError as error:
        return not str(error)
    return True


@pytest.mark.parametrize("name", names())
def test_wrong_settings_of_attacks_raise_errors_of_the_library(name: str) -> None:
    for setting in settings_of(name):
        taken = [value for value in WRONG if accepted(partial(make, name), **{setting: value})]
        assert len(taken) < len(WRONG) / 2, setting


@pytest.mark.parametrize(
    ("kind", "needed"),
    [
        (AdaptiveAPGD, {"rung": "fewer-steps"}),
        (AutoAttack, {"attack": "apgd-ce"}),
        (Foreign, {"library": "foolbox", "attack": "LinfPGD"}),
        (Rung, {"name": "fewer-steps"}),
    ],
)
def test_wrong_fields_of_attacks_raise_errors_of_the_library(
    kind: Any, needed: dict[str, Any]
) -> None:
    for field in dataclasses.fields(kind):
        for value in WRONG:
            accepted(kind, **needed | {field.name: value})


@pytest.mark.parametrize("kind", DEFENSES)
def test_wrong_settings_of_defenses_raise_errors_of_the_library(kind: Callable[..., Any]) -> None:
    for setting in inspect.signature(kind).parameters:
        for value in WRONG:
            taken = accepted(kind, **{"model": small()} | {setting: value})
            assert not (taken and setting == "model")


def test_wrong_arguments_of_calls_by_name_raise_errors_of_the_library() -> None:
    for value in (*WRONG, None, linear()):
        assert not accepted(partial(make, value))
        assert not accepted(make_from, text=value)
        assert not accepted(from_factory, spec=value)
        assert not accepted(settings_of, name=value)
        taken = accepted(Majority, defense=small(), submissions=value)
        assert taken == (isinstance(value, int) and value > 1)
        assert not accepted(defenses.load_config, path=value)
        assert not accepted(defenses.make, spec=value, model=small())
        method = Method(small())
        taken = accepted(defenses.TestTimeAdaptation, method=method, model=value)
        assert taken == isinstance(value, nn.Module)
    for name in defenses.names():
        for value in (*WRONG, None):
            assert not accepted(defenses.make, spec=name, model=value)


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda: defenses.make(DENT_PLUS, small()), ConfigError, r"call Dent\(model, config\)"),
        (lambda: defenses.make(small(), "dent"), ConfigError, "and then the model, got .*Sequen"),
        (lambda: defenses.make("dent", "dent"), UnsupportedModelError, "expected a torch.nn.Mod"),
        (lambda: defenses.TentOnline(small(), "dent"), ConfigError, "expected a DentConfig, got"),
        (lambda: defenses.Hedge(small(), bounds=(0,)), ConfigError, "two numbers .low, high."),
        (lambda: defenses.ET3(small(), bounds=0.5), ConfigError, "two numbers .low, high."),
        (
            lambda: defenses.MeanSparse(small(), images=[(torch.rand(2, 3, 6, 6), 0)]),
            ConfigError,
            "leave out the labels",
        ),
        (lambda: make("adaptive-fewer-steps", steps="2"), ConfigError, "steps must be a whole"),
        (lambda: make("adaptive-truncated", steps=1.5), ConfigError, "steps must be a whole"),
        (lambda: AdaptiveAPGD("fewer-steps", steps=True), ConfigError, "steps must be a whole"),
        (lambda: AdaptiveAPGD("fewer-steps", losses=5), ConfigError, "losses must be names"),
        (lambda: make(AdaptiveAPGD("bpda")), ConfigError, "by its name"),
    ],
)
def test_errors_say_what_was_expected(
    call: Callable[[], Any], error: type[DentError], said: str
) -> None:
    with pytest.raises(error, match=said):
        call()
