"""Weights files of other tools: wrapped, nested, averaged, with shared tensors, or invalid."""

import argparse
import gzip
import io
import json
import os
import re
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dent import models
from dent.errors import WeightsError, WeightsWarning
from dent.models.convert import convert
from dent.models.weights import fit_weights, read_weights


def small(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5))


def equal(model: nn.Module, state: dict[str, Tensor]) -> bool:
    own = model.state_dict()
    return all(torch.equal(own[name], state[name]) for name in own)


def loaded(content: Any, folder: Path, part: str = "") -> nn.Module:
    """Save content with torch.save, and load it into a model that had other weights."""
    path = folder / "w.pt"
    torch.save(content, path)
    model = small(9)
    asked = Path(f"{path}{part}")
    fit_weights(model, read_weights(asked), str(asked))
    return model


def silent(content: Any, folder: Path) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return loaded(content, folder)


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


# --- files without weights --------------------------------------------------------------------


def _zip(**files: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


def _tar() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("weights.pt"))
    return stream.getvalue()


def _npy() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.ones(3))
    return stream.getvalue()


def _npz() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, a=np.ones(3))
    return stream.getvalue()


STRANGERS: list[tuple[bytes, str]] = [
    (b"", "is empty"),
    (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
        "is a git-lfs pointer.*git lfs pull",
    ),
    (b"<!DOCTYPE html><html><title>Sign in</title></html>", "web page"),
    (b"\n<HTML>", "web page"),
    (b'{"error": "rate limited"}', "contains text instead of weights .it begins '{\"error"),
    (b"/annex/objects/SHA256E-s100--aa.pth\n", "contains text instead of weights"),
    (gzip.compress(b"x", mtime=0), "is a gzip archive.*unpack"),
    (_tar(), "is a tar archive.*unpack"),
    (
        _zip(readme=b"x", weights=b"y"),
        "zip archive that torch.save did not write .*readme, weights",
    ),
    (_npz(), "npz archive of NumPy arrays"),
    (_npy(), "is a NumPy array"),
    (b"\x89HDF\r\n\x1a\n" + bytes(50), "HDF5 file"),
    (b"\x89PNG\r\n\x1a\n" + bytes(50), "PNG picture"),
]


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".bin"])
@pytest.mark.parametrize(("content", "said"), STRANGERS)
def test_files_without_weights_are_recognized_by_their_content(
    tmp_path: Path, content: bytes, said: str, suffix: str
) -> None:
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=said) as caught:
        read_weights(path)
    assert str(path) in str(caught.value)
    assert "weights_only" not in str(caught.value)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=80) | st.text(max_size=80).map(str.encode))
def test_no_file_content_leads_to_an_error_that_mentions_weights_only(
    tmp_path: Path, content: bytes
) -> None:
    for name in ("w.pt", "w.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(WeightsError) as caught:
            read_weights(tmp_path / name)
        assert "weights_only" not in str(caught.value)


def test_error_for_safetensors_with_a_wrong_suffix_gives_the_right_name(tmp_path: Path) -> None:
    safetensors.torch.save_file({"a": torch.ones(2)}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"is a safetensors file: name it w\.safetensors"):
        read_weights(tmp_path / "w.pth")


@pytest.mark.parametrize("suffix", [".th", ".pyth"])
def test_torch_files_with_the_suffixes_th_and_pyth_are_read(tmp_path: Path, suffix: str) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / f"w{suffix}")
    assert torch.equal(read_weights(tmp_path / f"w{suffix}")["a"], torch.ones(2))


# --- objects beside the weights ---------------------------------------------------------------


@pytest.mark.parametrize(
    "extra",
    [
        {"acc": np.float64(93.2)},
        {"args": argparse.Namespace(lr=1)},
        {"path": Path("runs")},
        {"history": np.arange(3.0)},
    ],
)
def test_error_for_pickled_objects_gives_a_conversion_command_that_works(
    tmp_path: Path, extra: dict[str, Any]
) -> None:
    state = small().state_dict()
    path = tmp_path / "w.pt"
    torch.save({"net": state, **extra}, path)
    with pytest.raises(WeightsError, match="nothing in it was run") as caught:
        read_weights(path)
    assert "weights_only" not in str(caught.value)
    command = re.search(r'python -c "(.*)"', str(caught.value))
    assert command is not None
    exec(command[1], {})  # noqa: S102
    model = small(9)
    fit_weights(model, read_weights(tmp_path / "w-weights.pt"), "here")
    assert equal(model, dict(state))


def test_conversion_keeps_averaged_weights_beside_plain_weights(tmp_path: Path) -> None:
    """timm checkpoints hold both, and the training arguments as a Python object."""
    state, average = dict(small().state_dict()), dict(small(1).state_dict())
    content = {"state_dict": state, "state_dict_ema": average, "args": argparse.Namespace(lr=1)}
    torch.save(content, tmp_path / "w.pt")
    made = convert(tmp_path / "w.pt", allow=["argparse.Namespace"])
    for part, expected in (("#state_dict_ema", average), ("#state_dict", state)):
        model = small(9)
        fit_weights(model, read_weights(Path(f"{made}{part}")), "here")
        assert equal(model, expected)
    with pytest.warns(WeightsWarning, match="took 'state_dict', not 'state_dict_ema'"):
        read_weights(made)


class Armed:
    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (self.marker,)


def test_a_malicious_file_gets_no_conversion_command_and_is_not_converted(tmp_path: Path) -> None:
    path, marker = tmp_path / "w.pt", tmp_path / "ran"
    torch.save({"net": small().state_dict(), "x": Armed(marker)}, path)
    with pytest.raises(
        WeightsError, match=r"No weights file needs \w+\.mkdir: delete it"
    ) as caught:
        read_weights(path)
    assert "python -c" not in str(caught.value)
    with pytest.raises(WeightsError, match="never allowed"):
        convert(path, allow=["posix.mkdir"])
    with pytest.raises(WeightsError, match=r"also needs \w+\.mkdir"):
        convert(path, allow=["argparse.Namespace"])
    assert not marker.exists()
    assert [each.name for each in tmp_path.iterdir()] == ["w.pt"]


# --- wrapped and nested -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: prefixed("model.", s),
        lambda s: prefixed("backbone.", s),
        lambda s: prefixed("net.module.", s),
        lambda s: prefixed("_orig_mod.model.", s),
        lambda s: prefixed("encoder.q.trunk.", s),
        lambda s: {"state_dict": prefixed("model.", s), "epoch": 3, "loops": {"a": {"b": 1}}},
        lambda s: {"model": {"state_dict": s}, "optimizer": {"state": {0: {"m": torch.ones(1)}}}},
        lambda s: {"module": s, "buffer_names": ["1.running_mean"]},
        lambda s: {"network": prefixed("module.", s), "lr_scheduler": {"last": torch.ones(1)}},
        lambda s: {"params": s},
        lambda s: {"best": s, "loss": {"train": torch.ones(3)}},
        lambda s: {re.sub(r"^(\d)\.", r"\1.module.", k): v for k, v in s.items()},
        lambda s: {re.sub(r"^1\.", "1._orig_mod.", k): v for k, v in s.items()},
        lambda s: prefixed("_fsdp_wrapped_module.", s),
    ],
)
def test_prefixes_and_containers_of_frameworks_are_removed(
    tmp_path: Path, wrap: Callable[[Any], Any]
) -> None:
    state = dict(small().state_dict())
    assert equal(silent(wrap(state), tmp_path), state)


@pytest.mark.parametrize("average", [None, get_ema_multi_avg_fn(0.9)])
@pytest.mark.parametrize("outer", ["", "module.", "_orig_mod."])
def test_checkpoints_of_torch_averaged_models_are_read(
    tmp_path: Path, average: Any, outer: str
) -> None:
    model = small()
    averaged = AveragedModel(model, multi_avg_fn=average)
    averaged.update_parameters(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    averaged.update_parameters(model)
    content = prefixed(outer, dict(averaged.state_dict()))
    if outer:
        content["n_averaged"] = content.pop(f"{outer}n_averaged")
    assert equal(silent(content, tmp_path), dict(averaged.module.state_dict()))


@pytest.mark.parametrize(
    ("wrap", "part"),
    [
        (lambda s, a: {"state_dict": s, "state_dict_ema": a}, "state_dict_ema"),
        (lambda s, a: {"state_dict_ema": a, "state_dict": s}, "state_dict_ema"),
        (lambda s, a: {"model": s, "model_ema": a, "epoch": 3}, "model_ema"),
        (lambda s, a: {"params_ema": a, "params": s}, "params_ema"),
        (lambda s, a: {"model": s, "ema": {"module": a}}, "ema.module"),
        (lambda s, a: {"net": s, "swa_net": a}, "swa_net"),
        (
            lambda s, a: {"state_dict": prefixed("model.", s) | prefixed("ema_model.", a)},
            "ema_model",
        ),
        (lambda s, a: prefixed("ema.module.", a) | prefixed("model.", s), "ema"),
        (lambda s, a: prefixed("net.", s) | prefixed("net_ema.", a), "net_ema"),
    ],
)
def test_plain_weights_are_taken_and_a_warning_tells_how_to_take_the_average(
    tmp_path: Path, wrap: Callable[[Any, Any], Any], part: str
) -> None:
    state, average = dict(small().state_dict()), dict(small(1).state_dict())
    with pytest.warns(WeightsWarning) as said:
        model = loaded(wrap(state, average), tmp_path)
    assert equal(model, state)
    advised = re.search(r"w\.pt(#\S+)$", str(said[0].message))
    assert advised is not None
    assert advised[1] == f"#{part}"
    assert equal(loaded(wrap(state, average), tmp_path, advised[1]), average)


def test_averaged_weights_without_plain_ones_are_taken_without_warning(tmp_path: Path) -> None:
    state = dict(small().state_dict())
    assert equal(silent({"state_dict_ema": state, "epoch": 1}, tmp_path), state)


def test_models_load_takes_the_named_part_of_a_checkpoint(tmp_path: Path) -> None:
    plain, average = models.resnet("resnet-14-1"), models.resnet("resnet-14-1")
    torch.save({"model": plain.state_dict(), "model_ema": average.state_dict()}, tmp_path / "w.pt")
    model = models.load("resnet-14-1", weights=f"{tmp_path}/w.pt#model_ema")
    assert models.weights_digest(model) == models.weights_digest(average)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda a, b: {"student": a, "teacher": b},
        lambda a, b: prefixed("student.", a) | prefixed("teacher.", b),
    ],
)
def test_a_file_with_two_models_is_refused_unless_one_is_named(
    tmp_path: Path, wrap: Callable[[Any, Any], Any]
) -> None:
    first, second = dict(small().state_dict()), dict(small(1).state_dict())
    with pytest.raises(WeightsError, match=r"student.*teacher.*Say which one, as in .*#student"):
        loaded(wrap(first, second), tmp_path)
    assert equal(loaded(wrap(first, second), tmp_path, "#teacher"), second)
    with pytest.raises(WeightsError, match="contains no state dict 'tutor'"):
        loaded(wrap(first, second), tmp_path, "#tutor")


def test_a_file_with_an_extra_first_layer_is_refused_unless_a_part_is_named(tmp_path: Path) -> None:
    """Without its normalization, the net of the file would give other predictions."""
    state = dict(small().state_dict())
    content = {"0.mean": torch.ones(3), **prefixed("1.", state)}
    with pytest.raises(WeightsError, match=r"the file contains 1 more: 0\.mean.*#1"):
        loaded(content, tmp_path)
    assert equal(loaded(content, tmp_path, "#1"), state)


def test_entries_of_the_training_loss_are_left_out_with_a_warning(tmp_path: Path) -> None:
    state = dict(small().state_dict())
    content = {"state_dict": {**prefixed("model.", state), "criterion.weight": torch.ones(5)}}
    with pytest.warns(WeightsWarning, match=r"left out: criterion\.weight"):
        model = loaded(content, tmp_path)
    assert equal(model, state)


def test_missing_entries_are_named_without_the_prefix_of_the_file(tmp_path: Path) -> None:
    state = dict(small().state_dict())
    del state["3.bias"]
    with pytest.raises(WeightsError, match=r"1 of the 9 entries .* missing in the file: 3\.bias"):
        loaded(prefixed("backbone.", state), tmp_path)


# --- shared tensors ---------------------------------------------------------------------------


def tied() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    return model


def apart() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))


@pytest.mark.parametrize("build", [tied, apart])
@pytest.mark.parametrize("noted", [True, False])
def test_shared_tensors_may_be_stored_once_if_the_model_or_the_file_ties_them(
    tmp_path: Path, build: Callable[[], nn.Module], noted: bool
) -> None:
    saved, path = tied(), tmp_path / "w.safetensors"
    safetensors.torch.save_model(saved, str(path))
    if not noted:  # without metadata, as transformers and accelerate write them
        safetensors.torch.save_file(safetensors.torch.load_file(path), path)
    model = build()
    if build is apart and not noted:
        with pytest.raises(WeightsError, match=r"missing in the file: [02]\.weight"):
            fit_weights(model, read_weights(path), "here")
        return
    fit_weights(model, read_weights(path), "here")
    assert equal(model, dict(saved.state_dict()))


def test_different_values_for_one_shared_tensor_are_refused() -> None:
    with pytest.raises(WeightsError, match=r"different values for 0\.weight and 2\.weight"):
        fit_weights(tied(), dict(apart().state_dict()), "here")


def test_a_safetensors_header_that_does_not_match_the_data_is_refused(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}).encode()
    path = tmp_path / "w.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(WeightsError, match="damaged or not a safetensors file"):
        read_weights(path)
