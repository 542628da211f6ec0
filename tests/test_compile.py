"""A compiled defense gives the same results as an uncompiled one, or warns that it is not compiled.

Most tests use `aot_eager`, without the C++ compiler: the same graphs in a tenth of the time.
"""

import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from dent import CompileWarning, Dent, DentConfig, InputError, Performance
from dent.adaptation import adapted_model
from tests.configurations import BATCH, SAMPLE, Around
from tests.small_models import MODELS, make_images
from tests.test_behaviour import CONFIGS as DEFENSES
from tests.test_performance import PLAIN, assert_same_answers

COMPILED = Performance(compile=True)
CASES = [
    pytest.param(
        model,
        config,
        id=f"{model}-{config}",
        marks=() if (model, config) == ("tiny-cnn", "dent-plus") else pytest.mark.slow,
    )
    for model in MODELS
    for config in DEFENSES
    if config != "statistics-only"
]
NOT_BY_PYTORCH = {("rms-norm", "dent-plus"), ("rms-norm", "alone")}
"""Cases that dynamo cannot trace: F.rms_norm is overridden for one scale per sample."""


def expecting(model_name: str, config_name: str) -> AbstractContextManager[object]:
    """Expect a CompileWarning if the case cannot be compiled."""
    refused = (model_name, config_name) in NOT_BY_PYTORCH
    return pytest.warns(CompileWarning, match="could not be compiled") if refused else nullcontext()


@pytest.fixture
def x() -> Tensor:
    return torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(3))


@pytest.fixture(autouse=True)
def _no_warning_and_no_code_of_other_tests() -> Iterator[None]:
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("error", CompileWarning)
        yield


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Compile without C++; return a list that gets one entry per compiled graph."""
    made: list[None] = []
    backend = torch._dynamo.lookup_backend("aot_eager")

    def counting(graph: object, inputs: object) -> object:
        made.append(None)
        return backend(graph, inputs)

    compiled = torch.compile(adapted_model._call, fullgraph=True, dynamic=False, backend=counting)
    monkeypatch.setattr(adapted_model, "_compiled", lambda: compiled)
    return made


@pytest.mark.parametrize(("model_name", "config_name"), CASES)
def test_compiled_defense_gives_the_same_results(
    model_name: str, config_name: str, graphs: list[None]
) -> None:
    model, config = MODELS[model_name]().double().eval(), DEFENSES[config_name]
    defense, x = Dent(model, config, COMPILED), make_images(torch.float64)
    with expecting(model_name, config_name):
        assert_same_answers(defense, Dent(model, config, PLAIN), x, rtol=1e-6, atol=1e-7)
    if (model_name, config_name) in NOT_BY_PYTORCH:
        assert not graphs
        return
    assert bool(graphs) == (config.steps > 0)
    with torch.no_grad():
        expected = Dent(model, config, PLAIN)(x)
        torch.testing.assert_close(defense(x), expected, rtol=1e-6, atol=1e-7)
    assert len(graphs) == (2 if config.steps else 1)


@pytest.mark.slow
@pytest.mark.parametrize("config_name", ["dent", "dent-plus", "dent-nominal"])
@pytest.mark.parametrize("model_name", MODELS)
def test_defense_compiled_to_cpp_gives_the_same_results(model_name: str, config_name: str) -> None:
    model, config = MODELS[model_name]().double().eval(), DEFENSES[config_name]
    defense = Dent(model, config, COMPILED)
    x = make_images(torch.float64)
    with expecting(model_name, config_name):
        assert_same_answers(defense, Dent(model, config, PLAIN), x, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
def test_compiled_graphs_are_reused_for_other_batches_and_changed_weights(
    graphs: list[None], tiny_cnn: nn.Sequential, x: Tensor
) -> None:
    defense, plain = Dent(tiny_cnn, BATCH, COMPILED), Dent(tiny_cnn, BATCH)
    with torch.no_grad():
        torch.testing.assert_close(defense(x), plain(x))
        compiled = len(graphs)
        for name in ("0.weight", "1.weight", "1.running_var"):
            tiny_cnn.state_dict()[name].mul_(1.5)
            torch.testing.assert_close(defense(x.flip(0)), plain(x.flip(0)))
    assert len(graphs) == compiled == 2


class _Gain(Around):
    """Has an attribute that affects the logits and that the user may change."""

    gain = 2.0

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * super().forward(x)


def test_each_value_of_a_changed_attribute_is_compiled_once(
    graphs: list[None], tiny_cnn: nn.Sequential, x: Tensor
) -> None:
    model = _Gain(tiny_cnn)
    for gain in (2.0, 3.0, 2.0):
        model.gain = gain
        found = Dent(model, SAMPLE, COMPILED).adapt(x).entropy
        torch.testing.assert_close(found, Dent(model, SAMPLE).adapt(x).entropy)
    assert len(graphs) == 2


@pytest.mark.slow
def test_hooks_fire_at_every_compiled_forward(
    graphs: list[None], tiny_cnn: nn.Sequential, x: Tensor
) -> None:
    fired: list[int] = []
    tiny_cnn[1].register_forward_hook(lambda *_: fired.append(len(fired)))
    defense = Dent(tiny_cnn, BATCH, COMPILED)
    defense(x)  # the first batch also runs extra forwards, to check the defense
    fired.clear()
    defense(x)
    assert len(fired) == BATCH.steps + 1
    assert graphs


def test_exact_gradient_is_not_compiled(
    graphs: list[None], tiny_cnn: nn.Sequential, x: Tensor
) -> None:
    x.requires_grad_()
    gradients = []
    for performance in (COMPILED, Performance()):
        defense = Dent(tiny_cnn, BATCH, performance)
        logits = defense.predict(x, defense.adapt(x, differentiable=True))
        gradients += torch.autograd.grad(logits.square().sum(), x)
    assert torch.equal(*gradients)
    assert not graphs


class _Breaking(Around):
    """Reads the value of a tensor, which cannot be compiled."""

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return logits if float(logits.detach().sum()) < 1e9 else logits / 2


@pytest.mark.parametrize("config", [BATCH, SAMPLE])
def test_a_model_that_cannot_be_compiled_warns_once_and_runs_uncompiled(
    config: DentConfig, graphs: list[None], tiny_cnn: nn.Sequential, x: Tensor
) -> None:
    model = _Breaking(tiny_cnn)
    defense = Dent(model, config, COMPILED)
    with pytest.warns(CompileWarning, match=r"_Breaking could not be compiled.*same"):
        assert torch.equal(defense(x), Dent(model, config)(x))
    assert torch.equal(defense(x), Dent(model, config)(x))  # without a second warning
    assert not graphs


def test_a_missing_cpp_compiler_causes_a_warning_and_an_uncompiled_run(
    monkeypatch: pytest.MonkeyPatch, tiny_cnn: nn.Sequential, x: Tensor
) -> None:
    def none(*_: object) -> object:
        raise RuntimeError("no C++ compiler was found")

    compiled = torch.compile(adapted_model._call, fullgraph=True, backend=none)
    monkeypatch.setattr(adapted_model, "_compiled", lambda: compiled)
    defense = Dent(tiny_cnn, BATCH, COMPILED)
    with pytest.warns(CompileWarning, match="no C\\+\\+ compiler was found"):
        assert torch.equal(defense(x), Dent(tiny_cnn, BATCH)(x))


def test_a_torch_whose_compile_takes_no_recompile_limit_compiles_as_well(
    monkeypatch: pytest.MonkeyPatch, tiny_cnn: nn.Sequential, x: Tensor
) -> None:
    limits: list[int] = []
    config = torch._dynamo.config
    name = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
    before = getattr(config, name)
    here, backend = torch.compile, torch._dynamo.lookup_backend("aot_eager")

    def limited(graph: object, inputs: object) -> object:
        limits.append(getattr(config, name))
        return backend(graph, inputs)

    def older(model: Callable[..., object], *, fullgraph: bool, dynamic: bool) -> object:
        return here(model, fullgraph=fullgraph, dynamic=dynamic, backend=limited)

    compiled = adapted_model._compiled.__wrapped__  # not the cached one of this torch
    monkeypatch.setattr(adapted_model, "_compiled", functools.cache(compiled))
    monkeypatch.setattr(torch, "compile", older)
    defense = Dent(tiny_cnn, BATCH, COMPILED)
    torch.testing.assert_close(defense(x), Dent(tiny_cnn, BATCH)(x))
    assert limits
    assert set(limits) == {adapted_model._RECOMPILE_LIMIT}
    assert getattr(config, name) == before


def test_compiled_defense_refuses_a_bad_batch_with_the_usual_message(
    graphs: list[None], tiny_cnn: nn.Sequential, x: Tensor
) -> None:
    defense = Dent(tiny_cnn, BATCH, COMPILED)
    with pytest.raises(InputError, match=r"could not take a batch of shape \(2, 5, 8, 8\)"):
        defense(torch.rand(2, 5, 8, 8))
    torch.testing.assert_close(defense(x), Dent(tiny_cnn, BATCH)(x))
    assert graphs


@pytest.mark.slow
def test_compilation_works_with_bfloat16(
    graphs: list[None], tiny_cnn: nn.Sequential, x: Tensor
) -> None:
    defense = Dent(tiny_cnn, SAMPLE, replace(COMPILED, precision="bfloat16"))
    torch.testing.assert_close(defense(x), Dent(tiny_cnn, SAMPLE)(x), rtol=0.1, atol=0.1)
    assert graphs
