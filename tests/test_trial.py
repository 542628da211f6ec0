"""Checks on the first batch: the defense follows its model, or reports why it cannot."""

import copy
import functools
import random
import warnings
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dent.adaptation.random_state import (
    copied,
    get_state,
    kept_generators,
    seeded_generators,
    set_state,
)
from dent.config import DENT_PLUS, DentConfig, SmoothingConfig
from dent.defenses.dent import Dent
from dent.errors import (
    DentWarning,
    NoAdaptationWarning,
    NotLogitsWarning,
    PixelRangeWarning,
    SmallBatchWarning,
    StatefulModelWarning,
    UnsupportedModelError,
)
from dent.support.warned import own_batches
from tests.configurations import Around

STEPS = DentConfig(steps=2, lr=1e-2)
SAMPLE_WISE = DentConfig(steps=2, lr=1e-2, granularity="sample")


@pytest.fixture(autouse=True)
def _silent() -> Iterator[None]:
    """Turn unexpected warnings of the package into errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", DentWarning)
        yield


@pytest.fixture
def x() -> Tensor:
    return torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(3))


def _net(classes: int = 5) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, classes),
    ).eval()


class _Body(nn.Module):
    """A module around a plain net; the base class of models below."""

    def __init__(self) -> None:
        super().__init__()
        self.body = _net()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)  # type: ignore[no-any-return]


class _Features(_Body):
    """Uses the output that a hook stores on it, as feature extractors do."""

    def __init__(self, hook: Callable[["_Features"], Callable[..., None]]) -> None:
        super().__init__()
        self.seen: Any = None
        self.body[5].register_forward_hook(hook(self))

    def keep(self, module: nn.Module, args: object, output: Tensor) -> None:
        self.seen = output

    def forward(self, x: Tensor) -> Tensor:
        self.body(x)
        return self.body[6:](self.seen)  # type: ignore[no-any-return]


def _closure(model: _Features) -> Callable[..., None]:
    def hook(module: nn.Module, args: object, output: Tensor) -> None:
        model.seen = output

    return hook


def _with_forward(wrap: Callable[[Callable[..., Tensor]], Callable[..., Tensor]]) -> nn.Module:
    model = _net()
    model.forward = wrap(model.forward)  # type: ignore[method-assign,assignment]
    return model


def _decorated(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(forward)
    def timed(*args: Any, **named: Any) -> Tensor:
        return forward(*args, **named)

    return timed


def _in_defaults(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(x: Tensor, through: Callable[..., Tensor] = forward) -> Tensor:
        return through(x)

    return run


def _lambda() -> nn.Module:
    model = _Body()
    model.forward = lambda x: model.body(x) * 1  # type: ignore[method-assign]
    return model


def _lambdas_in_a_list() -> nn.Module:
    class Listed(_Body):
        def __init__(self) -> None:
            super().__init__()
            self.parts = {"all": [lambda x: self.body(x) * 1]}

        def forward(self, x: Tensor) -> Tensor:
            return self.parts["all"][0](x)  # type: ignore[no-any-return]

    return Listed()


def _child_knows_its_parent_weakly() -> nn.Module:
    class Child(nn.Module):
        def __init__(self, parent: nn.Module) -> None:
            super().__init__()
            self.parent = weakref.ref(parent)

        def forward(self, x: Tensor) -> Tensor:
            return self.parent().body(x)  # type: ignore[union-attr,no-any-return,operator]

    class Parent(_Body):
        def __init__(self) -> None:
            super().__init__()
            self.child = Child(self)

        def forward(self, x: Tensor) -> Tensor:
            return self.child(x)  # type: ignore[no-any-return]

    return Parent()


def _compiled_in_place() -> nn.Module:
    model = _net()
    model.compile(backend="eager")
    return model


def _train_that_returns_nothing() -> nn.Module:
    class Forgets(_Body):
        def train(self, mode: bool = True) -> Any:
            super().train(mode)

    return Forgets()


FOLLOWED: dict[str, Callable[[], nn.Module]] = {
    "hook-method": lambda: _Features(lambda model: model.keep),
    "hook-closure": lambda: _Features(_closure),
    "hook-partial": lambda: _Features(lambda model: functools.partial(_Features.keep, model)),
    "forward-autocast": lambda: _with_forward(torch.autocast("cpu", torch.bfloat16)),  # type: ignore[arg-type]
    "forward-decorated": lambda: _with_forward(_decorated),
    "forward-twice-decorated": lambda: _with_forward(lambda f: _decorated(_decorated(f))),
    "forward-in-defaults": lambda: _with_forward(_in_defaults),
    "forward-partial": lambda: _with_forward(lambda f: functools.partial(_decorated(f))),
    "forward-lambda": _lambda,
    "lambdas-in-a-list": _lambdas_in_a_list,
    "weak-reference": _child_knows_its_parent_weakly,
    "compiled-in-place": _compiled_in_place,
    "train-returns-nothing": _train_that_returns_nothing,
}


@pytest.mark.parametrize("config", [STEPS, SAMPLE_WISE])
@pytest.mark.parametrize("name", FOLLOWED)
def test_the_copy_adapts_however_the_model_refers_to_its_layers(
    name: str, config: DentConfig, x: Tensor
) -> None:
    model, plain = FOLLOWED[name](), _net()
    model.eval()
    want = model(x).detach()
    model(1 - x)
    kept = getattr(model, "seen", None)
    defense = Dent(model, config)
    with defense.disabled():
        assert torch.equal(defense(x), want)
    adaptation = defense.adapt(x)
    expected = Dent(plain, config).adapt(x)
    assert len(adaptation.parameters) == 4
    for (key, value), known in zip(
        adaptation.parameters.items(), expected.parameters.values(), strict=True
    ):
        own = model.get_parameter(key)
        assert ((value - own).abs() > 1e-3).any(), key
        if "autocast" not in name:
            torch.testing.assert_close(value, known)
    assert getattr(model, "seen", None) is kept


class _Delegates(nn.Module):
    """Gets missing attributes from the module that it wraps."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner((x - 0.5) / 0.25)  # type: ignore[no-any-return]


def test_a_wrapper_that_delegates_attributes_is_not_unwrapped(x: Tensor) -> None:
    compiled: Any = torch.compile(_net(), backend="eager")
    model = _Delegates(compiled).eval()
    defense = Dent(model, STEPS)
    with defense.disabled():
        assert torch.equal(defense(x), _net()((x - 0.5) / 0.25))
    model = _Delegates(_net()).eval()
    model._orig_mod = model.inner  # the name that torch.compile uses, on an ordinary module
    with Dent(model, STEPS).disabled() as _, torch.no_grad():
        assert torch.equal(Dent(model, STEPS)(x), Dent(_Delegates(_net()).eval(), STEPS)(x))


_GLOBAL: list[nn.Module] = []


class _RunsAGlobal(_Body):
    def forward(self, x: Tensor) -> Tensor:
        return _GLOBAL[0](x)  # type: ignore[no-any-return]


def test_a_model_whose_copy_runs_layers_of_the_original_is_refused(x: Tensor) -> None:
    model = _RunsAGlobal().eval()
    _GLOBAL[:] = [model.body]
    defense = Dent(model, STEPS)
    with pytest.raises(UnsupportedModelError, match=r"calls layers of the model itself \(body.*"):
        defense(x)
    with (
        pytest.raises(UnsupportedModelError, match="leads back to the original"),
        defense.disabled(),
    ):
        defense(x)


def test_a_copy_with_other_logits_than_the_model_is_refused(x: Tensor) -> None:
    class Halves(_Body):
        def __deepcopy__(self, memo: dict[int, Any]) -> "Halves":
            new = Halves()
            new.load_state_dict({k: v / 2 for k, v in self.state_dict().items()})
            return new

    with pytest.raises(UnsupportedModelError, match=r"does not answer as the model does: .*differ"):
        Dent(Halves().eval(), STEPS)(x)


def test_a_copy_that_fails_on_a_batch_of_the_model_is_refused(x: Tensor) -> None:
    class Bare(_Body):
        def __deepcopy__(self, memo: dict[int, Any]) -> "Bare":
            new = Bare()
            new.body[0] = nn.Conv2d(1, 8, 3)
            return new

    with pytest.raises(UnsupportedModelError, match="cannot take a batch that the model takes"):
        Dent(Bare().eval(), STEPS)(x)


class _Counts(_Body):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x) + self.calls


class _LateHead(_Body):
    """Creates its head in the first forward."""

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        if not hasattr(self, "late"):
            self.late = nn.Linear(logits.shape[1], 3)
        late: Tensor = self.late(logits)
        return late


def test_a_model_that_creates_parameters_is_refused_until_it_has_run(x: Tensor) -> None:
    model = _LateHead().eval()
    defense = Dent(model, STEPS)
    for _ in range(2):
        with pytest.raises(UnsupportedModelError, match=r"creates parameters \(late\.weight"):
            defense(x)
    assert not hasattr(model, "late")
    model(x)
    assert torch.equal(defense(x), defense(x))


class _Caching(_Body):
    """Computes its first parts only once for the same batch."""

    def __init__(self, parts: int) -> None:
        super().__init__()
        self.parts = parts
        self.last: dict[float, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        key = float(x.sum())
        if key not in self.last:
            self.last[key] = self.body[: self.parts](x)
        logits: Tensor = self.body[self.parts :](self.last[key])
        return logits


@pytest.mark.parametrize("config", [STEPS, SAMPLE_WISE])
@pytest.mark.parametrize(("parts", "lost"), [(3, "2 of 4"), (9, "4 of 4")])
def test_a_model_that_keeps_earlier_activations_is_refused(
    x: Tensor, parts: int, lost: str, config: DentConfig
) -> None:
    said = rf"second forward .* reaches {lost} .* \(body\.1\.weight, .* as a cache does"
    with pytest.raises(UnsupportedModelError, match=said):
        Dent(_Caching(parts).eval(), config)(x)
    assert Dent(_Caching(1).eval(), config)(x).isfinite().all()  # no adapted layer is before it


def test_a_stateful_model_causes_a_warning_and_keeps_its_state(x: Tensor) -> None:
    model = _Counts().eval()
    with pytest.warns(StatefulModelWarning, match="gives other logits for the same batch"):
        Dent(model, STEPS)(x)
    assert model.calls == 0


def test_a_model_with_unrepeatable_randomness_is_accepted(x: Tensor) -> None:
    class Draws(_Body):
        source = random.SystemRandom()

        def forward(self, x: Tensor) -> Tensor:
            return (
                super().forward(x) - 5 - self.source.random()
            )  # never in the range of probabilities

    Dent(Draws().eval(), STEPS)(x)


def test_the_first_batch_changes_neither_the_model_nor_random_states(x: Tensor) -> None:
    class Keeps(_Body):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("sum", torch.zeros(()))
            self.kept: dict[str, Any] = {"of": [torch.zeros(()), {1}], "deep": ([],)}

        def forward(self, x: Tensor) -> Tensor:
            self.sum += 1
            self.kept["of"][0].add_(1)
            self.kept["of"][1].add(len(x))
            self.kept["deep"][0].append(x)
            self.kept["new"] = self.more = x
            return super().forward(x)

    model = Keeps().train()
    before = copy.deepcopy(vars(model))
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # type: ignore[index,union-attr] # noqa: NPY002
    Dent(model, STEPS).adapt(x)
    assert all(module.training for module in model.modules())
    assert vars(model).keys() == before.keys()
    assert model.sum == 0
    assert model.kept == before["kept"]
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()  # type: ignore[index] # noqa: NPY002


def test_only_the_first_batch_runs_extra_checks(x: Tensor) -> None:
    seen: list[int] = []
    model = _net()
    model[0].register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    defense = Dent(model, STEPS)
    defense(x)
    first = len(seen)
    defense(x)
    assert first > len(seen) - first == STEPS.steps + 1
    seen.clear()
    defense.with_steps(1)(x)
    assert len(seen) == 2


def test_a_model_with_a_fixed_batch_size_is_checked_with_the_whole_batch() -> None:
    class Twelve(_Body):
        def forward(self, x: Tensor) -> Tensor:
            assert len(x) == 12
            return super().forward(x)

    class TwelveHalves(Twelve):
        def __deepcopy__(self, memo: dict[int, Any]) -> "TwelveHalves":
            new = TwelveHalves()
            new.load_state_dict({k: v / 2 for k, v in self.state_dict().items()})
            return new

    x = torch.rand(12, 3, 16, 16)
    assert Dent(Twelve().eval(), STEPS)(x).isfinite().all()
    with pytest.raises(UnsupportedModelError, match="does not answer as the model does"):
        Dent(TwelveHalves().eval(), STEPS)(x)


GENERATORS: dict[str, tuple[Callable[[], Any], Callable[[Any], float]]] = {
    "torch": (
        lambda: torch.Generator().manual_seed(7),
        lambda source: float(torch.rand((), generator=source)),
    ),
    "numpy": (lambda: np.random.default_rng(7), lambda source: float(source.random())),
    "numpy-legacy": (
        lambda: np.random.RandomState(7),
        lambda source: float(source.rand()),
    ),
    "python": (lambda: random.Random(7), lambda source: float(source.random())),  # noqa: S311
}


class _Noisy(_Body):
    """Adds a random number to its logits, which can be read off the logits."""

    def __init__(self, kind: str, within: Callable[[Any], Any] = lambda it: it) -> None:
        super().__init__()
        make, self.draw = GENERATORS[kind]
        self.source = make()
        self.held = within(self.source)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.draw(self.source)


@pytest.mark.parametrize("kind", GENERATORS)
def test_a_defended_model_draws_the_same_numbers_from_its_own_generator(
    kind: str, x: Tensor
) -> None:
    model, twin = _Noisy(kind).eval(), _Noisy(kind).eval()
    defense = Dent(model, STEPS)
    with defense.disabled():
        answers = [defense(x) for _ in range(3)]
    for answer in answers:
        torch.testing.assert_close(answer, twin(x))
    # The generator advances once for each prediction, and not for the steps.
    base = Dent(_net(), STEPS)(x)
    for _ in range(3):
        torch.testing.assert_close(defense(x), base + twin.draw(twin.source))


@pytest.mark.parametrize("kind", GENERATORS)
def test_each_step_draws_new_numbers_and_adapt_restores_the_generator(kind: str, x: Tensor) -> None:
    class Scaled(_Noisy):
        drawn: list[float] = []  # noqa: RUF012

        def forward(self, x: Tensor) -> Tensor:
            self.drawn.append(self.draw(self.source))
            return _Body.forward(self, x)

    model = Scaled(kind).eval()
    defense = Dent(model, STEPS)
    defense.adapt(x)
    model.drawn.clear()
    before = get_state(model.source)
    defense.adapt(x)
    assert len(set(model.drawn)) == STEPS.steps
    assert str(get_state(model.source)) == str(before)


@pytest.mark.parametrize("kind", GENERATORS)
def test_generators_are_found_copied_and_seeded(kind: str) -> None:
    class Holder:
        def __init__(self, source: Any) -> None:
            self.sources = {"one": [source]}

    for within in (lambda it: it, lambda it: [(it,)], Holder):
        model = _Noisy(kind, within)
        del model.source
        if within is not Holder:
            assert kept_generators(nn.Sequential(model)) == [_only(model.held)]
        (source,) = kept_generators(model)
        twin = copied(source)
        assert model.draw(twin) == model.draw(source)
        state, expected = get_state(source), model.draw(copied(source))
        with seeded_generators(model, 2**40 + 3):
            first = model.draw(source)
        with seeded_generators(model, 2**40 + 3):
            assert model.draw(source) == first != expected
        assert model.draw(source) == expected
        set_state(source, state)
        assert model.draw(source) == expected


class _Slotted:
    __slots__ = ("source",)

    def __init__(self, source: Any) -> None:
        self.source = source


HOLDERS: dict[str, Callable[[Any], Any]] = {
    "closure": lambda source: lambda: source,
    "partial": lambda source: functools.partial(print, 1, generator=source),
    "method": lambda source: _Slotted(source).__init__,  # type: ignore[misc]
    "slots": _Slotted,
    "deep": lambda source: [[[[[{"of": _Slotted(_Slotted([[[source]]]))}]]]]],
}


@pytest.mark.parametrize("within", HOLDERS.values(), ids=HOLDERS)
def test_kept_generators_finds_generators_in_objects_of_many_kinds(
    within: Callable[[Any], Any],
) -> None:
    class Keeper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.first = _Noisy("torch"), random.Random(1)  # noqa: S311
            self.held = within(torch.Generator())
            self.again = self.held

    model = Keeper()
    own, last, inner = kept_generators(model, everywhere=True)
    assert (own, inner) == (model.first, model.inner.source)  # children last
    assert isinstance(last, torch.Generator)
    found = kept_generators(model)
    assert found == ([own, inner] if within is HOLDERS["deep"] else [own, last, inner])
    assert kept_generators([model], everywhere=True) == [own, last, inner]  # also in a plain list


def _only(held: Any) -> Any:
    while isinstance(held, list | tuple):
        (held,) = held
    return held


class _Part(_Body):
    """Runs its first layers through a function that cuts the autograd graph."""

    def __init__(self, cut: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.cut = cut

    def forward(self, x: Tensor) -> Tensor:
        return self.body[2:](self.cut(self.body[:2], x))  # type: ignore[no-any-return]


def _no_grad(part: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return part(x)  # type: ignore[no-any-return]


def _reentrant(part: nn.Module, x: Tensor) -> Tensor:
    return checkpoint(part, x, use_reentrant=True)  # type: ignore[no-any-return]


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")
@pytest.mark.parametrize("config", [STEPS, SAMPLE_WISE, DENT_PLUS])
@pytest.mark.parametrize("cut", [_no_grad, _reentrant, lambda part, x: part(x).detach()])
def test_layers_that_no_gradient_reaches_are_refused_by_name(
    cut: Callable[[nn.Module, Tensor], Tensor], config: DentConfig, x: Tensor
) -> None:
    model = _Part(cut).eval()
    with pytest.raises(
        UnsupportedModelError,
        match=r"reaches 2 of 4 .* of _Part \(body\.1\.weight, body\.1\.bias\).*use_reentrant=False",
    ):
        Dent(model, config)(x)
    last = DentConfig(steps=2, lr=1e-2, last_layers=1)
    assert set(Dent(model, last).adapt(x).parameters) == {"body.4.weight", "body.4.bias"}


def test_a_failing_backward_of_the_model_is_refused_with_advice(x: Tensor) -> None:
    class Between(_Body):
        def forward(self, x: Tensor) -> Tensor:
            inner = self.body[:2](x)
            return checkpoint(self.body[2:], inner, use_reentrant=True)  # type: ignore[no-any-return]

    with pytest.raises(UnsupportedModelError, match=r"backward of Between fails.*checkpointing"):
        Dent(Between().eval(), STEPS)(x)


def test_layers_that_do_not_affect_the_logits_are_accepted_unchanged(x: Tensor) -> None:
    class Auxiliary(_Body):
        def __init__(self) -> None:
            super().__init__()
            self.unused, self.beside = nn.BatchNorm2d(8), nn.BatchNorm2d(8)

        def forward(self, x: Tensor) -> Tensor:
            self.beside(self.body[0](x))
            return super().forward(x)

    parameters = Dent(Auxiliary().eval(), STEPS).adapt(x).parameters
    moved = [name for name, value in parameters.items() if value.unique().numel() != 1]
    assert {name.split(".")[0] for name in moved} == {"body"}


def test_a_model_with_one_logit_is_refused_unless_the_defense_is_disabled(x: Tensor) -> None:
    defense = Dent(_net(1), STEPS)
    with pytest.raises(UnsupportedModelError, match="entropy of one class is always 0"):
        defense(x)
    with defense.disabled():
        assert torch.equal(defense(x), _net(1)(x))


@pytest.mark.parametrize(
    ("head", "said"), [(nn.Softmax(1), "the softmax out"), (nn.Sigmoid(), "the sigmoid out")]
)
def test_outputs_that_are_probabilities_cause_a_warning(
    head: nn.Module, said: str, x: Tensor
) -> None:
    with pytest.warns(NotLogitsWarning, match=f"Take {said} of the model"):
        Dent(nn.Sequential(_net(), head).eval(), STEPS)(x)
    Dent(nn.Sequential(_net(), nn.LogSoftmax(1)).eval(), STEPS)(x)


def test_probabilities_are_recognized_under_another_default_dtype(x: Tensor) -> None:
    defense = Dent(nn.Sequential(_net(), nn.Softmax(1)).eval(), STEPS)
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.warns(NotLogitsWarning, match="Take the softmax"):
            assert defense(x).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


class _Times(Around):
    factor = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x) * self.factor  # type: ignore[no-any-return]


@pytest.mark.parametrize("factor", [0.0, 1e6])
def test_an_objective_without_a_gradient_causes_a_warning(factor: float, x: Tensor) -> None:
    model = _Times(_net()).eval()
    model.factor = factor
    with pytest.warns(NoAdaptationWarning, match="changes nothing"):
        adaptation = Dent(model, STEPS).adapt(x)
    for name, value in adaptation.parameters.items():
        assert torch.equal(value, model.get_parameter(name))


def test_a_batch_of_one_under_information_maximization_warns_once(x: Tensor) -> None:
    model = _net()
    defense = Dent(model, DENT_PLUS)
    with pytest.warns(NoAdaptationWarning, match="A batch of one sample is not adapted"):
        answer = defense(x[:1])
    torch.testing.assert_close(answer, model(x[:1]))
    defense(x[:1])
    defense(x)
    Dent(model, STEPS)(x[:1])


def test_a_batch_of_one_that_the_package_chose_causes_no_warning(x: Tensor) -> None:
    defense = Dent(_net(), DENT_PLUS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with own_batches():
            defense(x[:1])
    with pytest.warns(NoAdaptationWarning, match="is not adapted"):
        defense(x[:1])


def test_a_batch_of_one_is_smoothed_although_it_is_not_adapted(x: Tensor) -> None:
    """Without a gradient, the smoothing is applied with its initial sigma."""
    model = _net()
    config = replace(DENT_PLUS, smoothing=SmoothingConfig())
    with pytest.warns(NoAdaptationWarning, match="is not adapted"):
        answer = Dent(model, config)(x[:1])
    torch.testing.assert_close(answer, Dent(model, replace(config, steps=0))(x[:1]))
    assert not torch.allclose(answer, model(x[:1]))


def test_a_batch_of_one_under_test_statistics_warns_once(x: Tensor) -> None:
    """Normalizing a sample by its own statistics removes what distinguishes it."""
    defense = Dent(_net(), replace(STEPS, statistics="test"))
    with pytest.warns(SmallBatchWarning, match="one sample is normalized by its own statistics"):
        defense(x[:1])
    with warnings.catch_warnings():
        warnings.simplefilter("error", SmallBatchWarning)
        defense(x[:1])
        Dent(_net(), replace(STEPS, statistics="test"))(x)
        pixels = x[0].numel()
        layers = (nn.Flatten(), nn.LayerNorm(pixels), nn.Linear(pixels, 3))
        Dent(nn.Sequential(*layers), replace(STEPS, statistics="test"))(x[:1])


@pytest.mark.parametrize(
    "ask",
    [
        lambda defense, x: defense(x),
        lambda defense, x: defense.adapt(x),
        lambda defense, x: nn.Sequential(nn.Identity(), defense)(x),
    ],
    ids=["module", "method", "inside"],
)
def test_a_warning_names_the_file_of_the_caller(ask: Callable[..., Any], x: Tensor) -> None:
    with pytest.warns(NoAdaptationWarning) as caught:
        ask(Dent(_net(), DENT_PLUS), x[:1])
    assert {Path(each.filename).name for each in caught} == {Path(__file__).name}


def _standardized(images: Tensor, mean: float, std: float) -> Tensor:
    return (images - mean) / std


_IMAGES = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "given",
    [
        _IMAGES * 255,
        _IMAGES[:, :1] * 255,
        _standardized(_IMAGES * 255, 0.45, 0.225),
        -_IMAGES * 255,
    ],
    ids=["bytes", "gray", "bytes-normalized-as-if-not", "inverted"],
)
def test_pixels_on_a_scale_of_255_warn_once(given: Tensor) -> None:
    channels = given.shape[1]
    model = nn.Sequential(nn.Conv2d(channels, 6, 3), nn.BatchNorm2d(6), nn.Flatten())
    defense = Dent(model.eval(), STEPS)
    defense(_IMAGES[:, : given.shape[1]])
    with pytest.warns(PixelRangeWarning, match=r"divide by 255"):
        defense(given)
    defense(given)


@pytest.mark.parametrize(
    "given",
    [
        _IMAGES,
        _IMAGES * 2 - 1,
        _standardized(_IMAGES, 0.13, 0.19),
        _IMAGES * 255 - 110,
        _IMAGES[:, :2] * 255,
        torch.rand(4, 30) * 255,
        torch.zeros(2, 3, 8, 8),
    ],
    ids=["unit", "signed", "standardized", "caffe", "two-channels", "no-images", "black"],
)
def test_normalized_pixels_and_other_features_cause_no_warning(given: Tensor) -> None:
    features = given.shape[1]
    body = [nn.AdaptiveAvgPool2d(1), nn.Flatten()] if given.dim() == 4 else []
    torch.manual_seed(0)
    Dent(nn.Sequential(*body, nn.Linear(features, 6), nn.LayerNorm(6)).eval(), STEPS)(given)


@pytest.mark.parametrize("config", [STEPS, SAMPLE_WISE], ids=["batch", "sample"])
@pytest.mark.parametrize("differentiable", [False, True])
def test_the_first_batch_can_be_checkpointed_by_the_caller(
    differentiable: bool, config: DentConfig, x: Tensor
) -> None:
    """The caller's checkpointing repeats the call, but not the checks."""
    gradients = []
    for reentrant in (None, False, True):
        defense, images = Dent(_net(), config), x.clone().requires_grad_()

        def answer(batch: Tensor, defense: Dent = defense) -> Tensor:
            return defense.predict(batch, defense.adapt(batch, differentiable=differentiable))

        logits = (
            answer(images)
            if reentrant is None
            else checkpoint(answer, images, use_reentrant=reentrant)
        )
        logits.square().sum().backward()
        gradients.append(images.grad)
    for gradient in gradients:
        assert gradient is not None
        torch.testing.assert_close(gradient, gradients[0], rtol=0, atol=0)


def test_hooks_of_the_caller_see_the_same_tensors_for_the_first_batch_as_later(x: Tensor) -> None:
    defense = Dent(_net(), STEPS)
    saved = []
    for _ in range(2):
        shapes: list[torch.Size] = []

        def note(tensor: Tensor, shapes: list[torch.Size] = shapes) -> Tensor:
            shapes.append(tensor.shape)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            defense(x)
        saved.append(shapes)
    assert saved[0]
    assert saved[0] == saved[1]


class _Together(nn.Module):
    """Its logits depend on two shifts without a gradient, and on neither of them alone."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1))
        self.one, self.two = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(x).flatten(1))
        return logits + self.one.bias.detach() @ self.two.bias.detach() * torch.arange(10.0)


def test_parameters_that_no_gradient_reaches_are_named_if_they_act_only_together() -> None:
    torch.manual_seed(0)
    with pytest.raises(UnsupportedModelError, match="No gradient reaches 4 of 6"):
        Dent(_Together().eval(), STEPS)(torch.rand(8, 3, 8, 8))
