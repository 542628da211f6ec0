"""`deep_copy` gives what copy.deepcopy gives: equal values, and the same objects shared."""

import copy
from collections.abc import Callable
from types import FunctionType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dent import DENT, DENT_PLUS, Dent
from dent.defenses import registry
from dent.support.deep_copy import deep_copy
from tests.small_models import MODELS, make_tiny_cnn


class _Tensors(nn.Module):
    """Holds tensors that are more than a block of numbers of their own."""

    def __init__(self) -> None:
        super().__init__()
        whole = torch.arange(12.0).reshape(3, 4)
        self.register_buffer("whole", whole)
        self.register_buffer("row", whole[1])
        self.register_buffer("transposed", whole.t())
        self.same_memory = whole.view(12)
        self.same = whole
        self.part = torch.arange(10.0)[3:6]
        self.apart = torch.arange(6.0)[::2]
        self.conjugate = torch.tensor([1 + 2j]).conj()
        self.named = torch.ones(2)
        self.named.note = ["kept"]  # type: ignore[attr-defined]
        self.leaf = torch.ones(2, requires_grad=True)
        self.leaf.grad = torch.full((2,), 3.0)
        self.empty = torch.empty(0, 3)
        self.sparse = torch.eye(2).to_sparse()
        self.quantized = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)
        self.weight = nn.Parameter(torch.ones(2))
        self.by_name = {"whole": whole, "nested": {"row": whole[2]}}
        self.again_by_name = self.by_name
        self.by_number = {1: whole}


class _Counts:
    """Hook with a state, which a deep copy does not share."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, *_: object) -> None:
        self.calls += 1


def _with_hook() -> nn.Module:
    model = make_tiny_cnn()
    model.register_forward_hook(_Counts())
    return model


def _with_cycle() -> nn.Module:
    model = make_tiny_cnn()
    next(model.children()).parent = [model]
    return model


def _compiled() -> nn.Module:
    model = make_tiny_cnn()
    model.compile()
    return model


_OTHERS: dict[str, Callable[[], Any]] = {
    "tensors": _Tensors,
    "hook": _with_hook,
    "cycle": _with_cycle,
    "compiled": _compiled,
    "no module": lambda: {"model": make_tiny_cnn(), "numbers": [1, 2.0]},
    "dent+": lambda: Dent(make_tiny_cnn(), DENT_PLUS),
    "dent": lambda: Dent(make_tiny_cnn(), DENT),
}


def _assert_same(
    found: Any, expected: Any, original: Any, seen: dict[int, tuple[int, Any]]
) -> None:
    """Compare two copies of an object: values, kinds, and which parts are one object."""
    assert (found is original) == (expected is original)
    if found is expected:
        return
    if id(expected) in seen:
        assert seen[id(expected)][0] == id(found)
        return
    assert type(found) is type(expected)
    assert id(found) not in {match for match, _ in seen.values()}
    seen[id(expected)] = (id(found), expected)
    if isinstance(found, Tensor):
        _assert_same_tensor(found, expected, original, seen)
    elif isinstance(found, dict):
        assert list(found) == list(expected)
        for key in found:
            _assert_same(found[key], expected[key], original[key], seen)
    elif isinstance(found, list | tuple | set):
        for parts in zip(found, expected, original, strict=True):
            _assert_same(*parts, seen)
    if not isinstance(found, FunctionType) and hasattr(found, "__dict__"):
        kept = vars(original).items()
        same = {name: value for name, value in kept if name != "_compiled_call_impl"}
        _assert_same(vars(found), vars(expected), same, seen)


def _assert_same_tensor(
    found: Tensor, expected: Tensor, original: Tensor, seen: dict[int, tuple[int, Any]]
) -> None:
    assert found.requires_grad == expected.requires_grad
    assert found.layout == expected.layout
    torch.testing.assert_close(found, expected, rtol=0, atol=0, check_stride=True)
    if found.layout is torch.strided:
        assert found.storage_offset() == expected.storage_offset()
        storages = [each.untyped_storage() for each in (found, expected, original)]
        assert storages[0].nbytes() == storages[1].nbytes()
        assert storages[0]._cdata != storages[2]._cdata
        match = seen.setdefault(storages[1]._cdata, (storages[0]._cdata, storages[1]))
        assert match[0] == storages[0]._cdata
    if original.is_leaf and original.grad is not None:
        _assert_same(found.grad, expected.grad, original.grad, seen)


@pytest.mark.parametrize("name", [*MODELS, *_OTHERS])
def test_a_deep_copy_equals_that_of_copy_deepcopy(name: str) -> None:
    original = {**MODELS, **_OTHERS}[name]()
    _assert_same(deep_copy(original, {}), copy.deepcopy(original), original, {})


@pytest.mark.parametrize("name", registry.names())
def test_a_deep_copy_of_a_named_defense_equals_that_of_copy_deepcopy(name: str) -> None:
    defense = registry.make(name, make_tiny_cnn().eval())
    _assert_same(deep_copy(defense, {}), copy.deepcopy(defense), defense, {})


def test_what_is_in_the_memo_is_not_copied() -> None:
    model, shared = make_tiny_cnn(), nn.Identity()
    model.kept = shared
    memo = {id(shared): shared}
    assert deep_copy(model, memo).kept is shared
    assert memo[id(model)] is not model


def test_a_deep_copy_writes_to_its_own_tensors() -> None:
    model = _Tensors()
    copied = deep_copy(model, {})
    copied.whole.fill_(-1.0)
    assert copied.row.tolist() == [-1.0] * 4
    assert copied.same_memory.tolist() == [-1.0] * 12
    assert model.whole.flatten().tolist() == list(range(12))
