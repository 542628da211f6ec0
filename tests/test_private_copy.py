"""A private copy shares weights and hooks with its model, and owns everything else."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dent.adaptation.private_copy import private_copy
from dent.errors import UnsupportedModelError
from tests.small_models import MODELS


class _Odd(nn.Module):
    """Holds containers, one tensor under two names, and a child that refers to its parent."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("buffer", torch.ones(3))
        self.again = self.buffer
        self.kept: dict[str, Any] = {"tensors": [torch.zeros(2)], "of": (1, "two", [3])}
        self.layer = nn.Linear(3, 3)
        self.tied = nn.Linear(3, 3)
        self.tied.weight = self.layer.weight
        self.kept["module"] = self.layer
        self.layer.parent = [self]
        self.empty: list[int] = []
        self.as_empty = self.empty

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)  # type: ignore[no-any-return]


class _CopiesItself(nn.Module):
    """Defines `__deepcopy__`."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "_CopiesItself":
        new = _CopiesItself()
        new.told = True  # type: ignore[assignment]
        return new


class _Pickles(nn.Module):
    """Defines `__getstate__`, which deepcopy uses, too."""

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "told": True}


@pytest.mark.parametrize("name", MODELS)
def test_a_private_copy_equals_a_deepcopy_but_shares_the_weights(name: str) -> None:
    model = MODELS[name]().train()
    found, expected = private_copy(model), copy.deepcopy(model).eval()
    assert repr(found) == repr(expected)
    pairs = list(zip(found.modules(), expected.modules(), model.modules(), strict=True))
    for own, known, original in pairs:
        assert own is not original
        assert type(own) is type(known)
        assert vars(own).keys() == vars(known).keys()
        assert not own.training
        for key, tensor in own._buffers.items():
            if tensor is not None:
                assert torch.equal(tensor, known._buffers[key])
                assert tensor.data_ptr() != original._buffers[key].data_ptr()
        for key, tensor in own._parameters.items():
            if tensor is not None:
                assert tensor.data_ptr() == original._parameters[key].data_ptr()
                assert not tensor.requires_grad
    assert model.training


def test_objects_shared_within_a_model_are_shared_within_its_copy() -> None:
    model = _Odd()
    found = private_copy(model)
    assert found.again is found.buffer
    assert found.buffer is not model.buffer
    assert found.kept["module"] is found.layer
    assert found.layer.parent == [found]
    assert found.tied.weight is found.layer.weight
    assert found.as_empty is found.empty
    found.empty.append(1)
    found.kept["of"][2].append(4)
    found.kept["tensors"][0].add_(1)
    assert not model.empty
    assert model.kept["of"] == (1, "two", [3])
    assert not model.kept["tensors"][0].any()


def test_an_empty_container_under_two_names_stays_one_object() -> None:
    model = nn.Linear(2, 2)
    model.first = model.second = []  # type: ignore[assignment]
    found = private_copy(model)
    assert found.first is found.second
    assert found.first is not model.first


class _Hook:
    """A hook object, which a copy must share because it may have a state."""

    def __call__(self, *_: object) -> None:
        pass


def test_hooks_are_shared_but_hook_dictionaries_are_not() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].register_forward_hook(hook := _Hook())
    found = private_copy(model)
    assert [*found[0]._forward_hooks.values()] == [hook]
    found[0]._forward_hooks.clear()
    assert model[0]._forward_hooks


@pytest.mark.parametrize("kind", [_CopiesItself, _Pickles])
def test_custom_deepcopy_and_getstate_methods_are_used(kind: type[nn.Module]) -> None:
    assert private_copy(nn.Sequential(kind()))[0].told  # type: ignore[index]


def test_stored_activations_are_copied_without_their_graph() -> None:
    model = nn.Linear(2, 2)
    model.last = [model(torch.rand(1, 2))]  # type: ignore[assignment]
    (found,) = private_copy(model).last  # type: ignore[misc]
    assert found.grad_fn is None
    assert torch.equal(found, model.last[0])  # type: ignore[index]


def test_a_model_that_cannot_be_copied_is_refused() -> None:
    model = nn.Linear(2, 2)
    model.stream = open("/dev/null")  # type: ignore[assignment] # noqa: SIM115
    with pytest.raises(UnsupportedModelError, match="cannot be copied"):
        private_copy(model)
    model.stream.close()  # type: ignore[operator]
