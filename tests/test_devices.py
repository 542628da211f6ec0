"""Code that needs float64 gives the same results on a device without float64."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from dent import ThreatModel
from dent.attacks.best import Best
from dent.evaluation.records.schema import Trace
from dent.evaluation.submission import submission as serving
from dent.support import devices
from dent.threat import Norm


class Apple(Tensor):
    """An emulated tensor of an Apple GPU: it refuses float64 and tensors of other devices."""

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        # `.cpu()` and `.to(device, ...)` move a tensor to the CPU, which has float64.
        if func is Tensor.cpu or (func is Tensor.to and isinstance(args[1], torch.device)):
            return args[0].as_subclass(Tensor)
        result = super().__torch_function__(func, types, args, kwargs)
        with torch._C.DisableTorchFunctionSubclass():
            here = [each for each in _tensors((args, kwargs)) if each.ndim]
            if func is not Tensor.to and not all(isinstance(each, Apple) for each in here):
                raise RuntimeError(f"{func}: expected all tensors to be on the same device")
            if any(each.dtype == torch.float64 for each in _tensors(result)):
                raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return result


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [t for each in value for t in _tensors(each)] if isinstance(value, list | tuple) else []


@pytest.fixture(autouse=True)
def without_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "has_float64", lambda _: False)


def images(seed: int) -> Tensor:
    return torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(seed))


def test_emulated_tensor_refuses_float64_and_tensors_of_other_devices() -> None:
    x = images(0).as_subclass(Apple)
    for refused in (x.double, lambda: x.to(torch.float64)):
        with pytest.raises(TypeError, match="float64"):
            refused()
    with pytest.raises(RuntimeError, match="same device"):
        x + images(1)
    assert type(devices.wide(x)) is Tensor
    assert devices.wide(x).dtype == torch.float64
    assert devices.widest(x.device) == torch.float32


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_threat_model_gives_the_same_results_without_float64(norm: Norm) -> None:
    threat = ThreatModel(norm, {"linf": 0.1, "l2": 0.5, "l1": 2.0}[norm])
    x, far = images(0), images(1)
    apple_x, apple_far = x.as_subclass(Apple), far.as_subclass(Apple)
    assert torch.equal(threat.distance(apple_far, apple_x), threat.distance(far, x))
    assert torch.equal(threat.check(apple_far, apple_x), threat.check(far, x))
    # `.to(device)` cannot name the emulated device, so the result is on the CPU here.
    assert torch.equal(threat.project(apple_far, apple_x), threat.project(far, x))


@pytest.mark.parametrize("sample_wise", [True, False])
def test_recorded_trace_of_an_adaptation_is_the_same_without_float64(*, sample_wise: bool) -> None:
    draws = torch.Generator().manual_seed(0)
    logits, entropies = (torch.randn(4, 5, generator=draws), torch.rand(2, 4, generator=draws))
    sigma = torch.rand(3, 4, 2, generator=draws) if sample_wise else torch.rand(3, 2)

    def trace(*tensors: Tensor) -> Trace:
        answered, entropy, sigmas = tensors
        adaptation = SimpleNamespace(
            entropy=entropy, sigma=sigmas[-1], sigma_by_step=sigmas, sample_wise=sample_wise
        )
        return serving._trace(adaptation, answered, 3)

    made = (logits, entropies, sigma)
    found = trace(*(each.as_subclass(Apple) for each in made))
    assert found == trace(*made)
    assert found.rows == 3
    assert found.sigma is not None


def test_best_selects_images_in_float32_without_float64() -> None:
    target: Any = SimpleNamespace(
        labels=torch.tensor([0, 1, 2]), natural=images(0), batch_dependent=False
    )
    best = Best(target)
    assert best.wrong.dtype == torch.float32
    best.offer(images(1), torch.tensor([True, False, True]), torch.tensor([0.5, 1.0, 0.0]))
    best.offer(images(2), torch.tensor([True, False, False]), torch.tensor([0.25, 2.0, 9.0]))
    assert torch.equal(best.images, torch.stack([images(1)[0], images(2)[1], images(1)[2]]))
    assert best.fooled.tolist() == [True, False, True]
