import copy
import hashlib
import os
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dent import models
from dent.errors import WeightsError
from dent.models.weights import fit_weights, read_weights


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5))


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# --- the digest -------------------------------------------------------------------------------


def test_digest_is_the_sha256_of_names_dtypes_shapes_and_values() -> None:
    # Records of earlier versions identify weights by this digest, so it must never change.
    module = nn.Linear(2, 1)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[1.0, -2.0]]))
        module.bias.fill_(0.5)
    expected = (
        b'["bias", "torch.float32", [1]]\n\x00\x00\x00\x3f'
        b'["weight", "torch.float32", [1, 2]]\n\x00\x00\x80\x3f\x00\x00\x00\xc0'
    )
    assert models.weights_digest(module) == hashlib.sha256(expected).hexdigest()


def test_digest_does_not_depend_on_memory_format_mode_or_requires_grad() -> None:
    model = small()
    digest = models.weights_digest(model)
    assert re.fullmatch("[0-9a-f]{64}", digest)
    assert models.weights_digest(copy.deepcopy(model)) == digest
    assert (
        models.weights_digest(copy.deepcopy(model).to(memory_format=torch.channels_last)) == digest
    )
    assert models.weights_digest(copy.deepcopy(model).eval().requires_grad_(False)) == digest


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_digest_changes_if_any_single_bit_changes(data: st.DataObject) -> None:
    model = small()
    digest = models.weights_digest(model)
    tensor = model.state_dict()[data.draw(st.sampled_from(sorted(model.state_dict())))]
    values = tensor.reshape(-1).view(torch.uint8)
    values[data.draw(st.integers(0, len(values) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert models.weights_digest(model) != digest


def test_digest_distinguishes_names_dtypes_and_shapes() -> None:
    class Holder(nn.Module):
        def __init__(self, **buffers: Tensor) -> None:
            super().__init__()
            for name, tensor in buffers.items():
                self.register_buffer(name, tensor)

    zeros = torch.zeros(4)
    digests = {
        models.weights_digest(Holder(a=zeros)),
        models.weights_digest(Holder(b=zeros)),
        models.weights_digest(Holder(a=zeros.int())),
        models.weights_digest(Holder(a=zeros.view(2, 2))),
        models.weights_digest(Holder(a=zeros[:2], b=zeros[2:])),
        models.weights_digest(Holder()),
    }
    assert len(digests) == 6
    one, two = torch.ones(2), torch.ones(3, dtype=torch.bfloat16)
    assert models.weights_digest(Holder(a=one, b=two)) == models.weights_digest(
        Holder(b=two, a=one)
    )
    models.weights_digest(Holder(a=torch.empty(0), b=torch.tensor(True), c=torch.ones(1) * 1j))


def test_digest_of_an_entry_that_is_not_a_tensor_is_refused() -> None:
    class Extra(nn.Module):
        def get_extra_state(self) -> object:
            return {"a": 1}

    with pytest.raises(WeightsError, match="contains a dict at '_extra_state'"):
        models.weights_digest(Extra())


# --- reading ----------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".PTH", ".ckpt", ".pth.tar", ".bin"])
def test_reads_torch_files_with_every_common_suffix(tmp_path: Path, suffix: str) -> None:
    state = small().state_dict()
    path = tmp_path / f"weights{suffix}"
    torch.save(state, path)
    assert equal(read_weights(path), dict(state))


def test_reads_safetensors(tmp_path: Path) -> None:
    state = small().state_dict()
    safetensors.torch.save_file(state, tmp_path / "weights.safetensors")
    assert equal(read_weights(tmp_path / "weights.safetensors"), dict(state))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state, "optimizer": {"state": {}, "lr": 0.1}},
        lambda state: {"model_state_dict": state},
        lambda state: {"net": state, "acc": 93.1},
        lambda state: {"model": {"state_dict": state}},
    ],
)
def test_unwraps_checkpoints(tmp_path: Path, wrap: Any) -> None:
    state = small().state_dict()
    torch.save(wrap(state), tmp_path / "checkpoint.pt")
    assert equal(read_weights(tmp_path / "checkpoint.pt"), dict(state))


def test_error_names_a_missing_file_or_a_folder(tmp_path: Path) -> None:
    with pytest.raises(
        WeightsError, match=f"no weights file at .*none.pt .looked from {Path.cwd()}"
    ):
        read_weights(tmp_path / "none.pt")
    (tmp_path / "folder.pt").mkdir()
    with pytest.raises(WeightsError, match=r"cannot read .*folder\.pt: Is a directory"):
        read_weights(tmp_path / "folder.pt")


@pytest.mark.parametrize("name", ["weights.npz", "weights"])
def test_unknown_suffixes_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(WeightsError, match=r"ending in \.safetensors or one of \.pt, \.pth"):
        read_weights(tmp_path / name)


def test_a_file_with_a_wrong_digest_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(small().state_dict(), path)
    with pytest.raises(WeightsError, match=r"expected SHA-256 0{64}, got [0-9a-f]{64}"):
        read_weights(path, digest="0" * 64)


@pytest.mark.parametrize("keep", [0, 1, 40, 500, -30])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_truncated_file_is_refused(tmp_path: Path, suffix: str, keep: int) -> None:
    path = tmp_path / f"weights{suffix}"
    state = {"weight": torch.rand(1000)}
    torch.save(state, path) if suffix == ".pt" else safetensors.torch.save_file(state, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(WeightsError, match=rf"weights\{suffix}"):
        read_weights(path)


def test_a_file_with_the_wrong_suffix_is_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.rand(2)}, tmp_path / "torch.safetensors")
    safetensors.torch.save_file({"weight": torch.rand(2)}, tmp_path / "safe.pt")
    with pytest.raises(WeightsError, match=r"if torch\.save wrote it, name it \.pt"):
        read_weights(tmp_path / "torch.safetensors")
    with pytest.raises(WeightsError, match=r"safe\.pt"):
        read_weights(tmp_path / "safe.pt")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (torch.rand(2), "got a Tensor"),
        ([torch.rand(2)], "got a list"),
        ({}, "got an empty one"),
        ({"epoch": 3, "lr": 0.1, "w": torch.rand(2)}, r"epoch \(int\), lr \(float\)"),
        ({f"k{i}": i for i in range(9)}, r"k3 \(int\), and 5 more"),
    ],
)
def test_content_that_is_not_a_state_dict_is_refused(
    tmp_path: Path, content: Any, said: str
) -> None:
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(WeightsError, match=f"expected a state dict.*{said}"):
        read_weights(tmp_path / "other.pt")


def test_a_safetensors_file_without_tensors_is_refused(tmp_path: Path) -> None:
    safetensors.torch.save_file({}, tmp_path / "empty.safetensors")
    with pytest.raises(WeightsError, match="contains no tensors"):
        read_weights(tmp_path / "empty.safetensors")


class Bomb:
    """Unpickling it makes a folder, in place of what a malicious file would do."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (self.marker,)


def _pickled(content: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(content))


def _pickled_old(content: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(content, protocol=2))


@pytest.mark.parametrize("save", [torch.save, _pickled, _pickled_old])
@pytest.mark.parametrize(
    "wrap", [lambda b: b, lambda b: {"state_dict": {"w": torch.ones(1)}, "x": b}]
)
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_malicious_pickles_are_refused_and_not_run(tmp_path: Path, save: Any, wrap: Any) -> None:
    marker = tmp_path / "ran"
    for name in ("bomb.pt", "bomb.ckpt", "bomb.safetensors"):
        save(wrap(Bomb(marker)), tmp_path / name)
        with pytest.raises(WeightsError):
            read_weights(tmp_path / name)
        assert not marker.exists()
    # Unpickling the same bytes does run the code.
    if save is torch.save:
        torch.load(tmp_path / "bomb.pt", weights_only=False)
    else:
        pickle.loads((tmp_path / "bomb.pt").read_bytes())  # noqa: S301
    assert marker.exists()


@pytest.mark.parametrize("content", ["model", "checkpoint", "wrapped"])
def test_error_for_a_refused_pickle_gives_a_conversion_command_that_works(
    tmp_path: Path, content: str
) -> None:
    model = small()
    path = tmp_path / "whole.pt"
    torch.save(
        {
            "model": model,
            "checkpoint": {"state_dict": model.state_dict(), "path": Path("run")},
            "wrapped": {"model": model, "epoch": 1},
        }[content],
        path,
    )
    with pytest.raises(
        WeightsError, match="nothing in it was run: it contains Python objects"
    ) as caught:
        read_weights(path)
    assert "weights_only=False" not in str(caught.value).split("convert it once")[0]
    command = re.search(r'python -c "(.*)"', str(caught.value))
    assert command is not None
    exec(command[1], {})  # noqa: S102
    assert equal(read_weights(tmp_path / "whole-weights.pt"), dict(model.state_dict()))


@pytest.mark.filterwarnings("ignore")
def test_torchscript_is_refused(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), tmp_path / "script.pt")
    with pytest.raises(WeightsError, match=r"script\.pt .*TorchScript"):
        read_weights(tmp_path / "script.pt")


# --- fitting ----------------------------------------------------------------------------------


def test_a_matching_state_dict_fills_the_model_exactly() -> None:
    state = small().state_dict()
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5))
    fit_weights(model, state, "here")
    assert equal(dict(model.state_dict()), dict(state))


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod."]
)
def test_prefixes_of_wrappers_are_stripped(prefix: str) -> None:
    state, model = small().state_dict(), small()
    fit_weights(model, {f"{prefix}{name}": tensor for name, tensor in state.items()}, "here")
    assert equal(dict(model.state_dict()), dict(state))


def test_the_prefix_module_is_kept_if_the_model_has_a_submodule_of_that_name() -> None:
    model = nn.DataParallel(nn.Linear(2, 2))
    fit_weights(model, {"module.weight": torch.ones(2, 2), "module.bias": torch.ones(2)}, "here")
    assert bool((model.module.weight == 1).all())


def test_half_precision_files_fill_float_models() -> None:
    model = small()
    fit_weights(model, {k: v.half() if v.is_floating_point() else v
                        for k, v in small().state_dict().items()}, "here")  # fmt: skip
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert torch.equal(model[0].weight, small()[0].weight.half().float())  # type: ignore[index]


def test_files_without_num_batches_tracked_fit() -> None:
    state = {k: v for k, v in small().state_dict().items() if "num_batches" not in k}
    fit_weights(small(), state, "here")


def test_error_lists_every_mismatch_between_file_and_model() -> None:
    state = dict(small().state_dict())
    del state["1.bias"]
    state["3.weight"] = torch.ones(100, 16)
    state["0.bias"] = torch.ones(4, dtype=torch.int8)
    state |= {f"extra.{i}": torch.ones(1) for i in range(6)}
    with pytest.raises(WeightsError) as caught:
        fit_weights(small(), state, "file.pt")
    message = str(caught.value)
    assert "file.pt does not fit Sequential" in message
    assert "1 of the 9 entries of the model are missing in the file: 1.bias\n" in message
    assert "6 of the 14 entries of the file are unknown to the model: extra.0, " in message
    assert "extra.3, and 2 more" in message
    assert "3.weight: float32 (100, 16) in the file, float32 (5, 16) in the model" in message
    assert "0.bias: int8 (4,) in the file" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_or_infinite_weights_are_refused(value: float) -> None:
    state = dict(small().state_dict())
    state["3.bias"] = torch.full((5,), value)
    with pytest.raises(WeightsError, match=r"1 tensor contains NaN or infinite values \(3\.bias\)"):
        fit_weights(small(), state, "here")


def test_nan_statistics_are_refused_but_infinite_masks_are_accepted() -> None:
    model = small()
    model.register_buffer("mask", torch.tensor([0.0, float("-inf")]))
    fit_weights(model, model.state_dict(), "here")
    state = dict(model.state_dict())
    state["1.running_mean"] = torch.full((4,), float("nan"))
    with pytest.raises(WeightsError, match=r"1\.running_mean"):
        fit_weights(model, state, "here")


def test_a_web_page_is_reported_as_such_and_not_as_a_wrong_digest(tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(b"<!DOCTYPE html>\n<title>Too many requests</title>")
    with pytest.raises(WeightsError, match=r"contains a web page .* instead of weights"):
        read_weights(tmp_path / "w.pt", digest="0" * 64)


def test_a_digest_may_be_given_by_its_first_digits(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save({"a": torch.ones(2)}, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert torch.equal(read_weights(path, digest=digest[:8])["a"], torch.ones(2))
    other = "0" if digest[7] != "0" else "1"
    with pytest.raises(WeightsError, match="not the registered file"):
        read_weights(path, digest=digest[:7] + other)
