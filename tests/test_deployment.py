"""The deployment paths in docs/integrations.md work or fail as the table says.

Every row of the table has a test here, with a name derived from the path.
"""

import copy
import io
import multiprocessing
import pickle
import re
import socket
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from dent import (
    CompileWarning,
    Dent,
    DentConfig,
    ExportError,
    InputError,
    Performance,
    SmoothingConfig,
    UnsupportedModelError,
)
from dent.adaptation import adapted_model
from tests.configurations import BATCH, SAMPLE
from tests.small_models import make_tiny_cnn

PAGE = (Path(__file__).parents[1] / "docs" / "integrations.md").read_text()
BOTH = pytest.mark.parametrize("config", [BATCH, SAMPLE], ids=["batch", "sample"])


@pytest.fixture
def x() -> Tensor:
    return torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(3))


def test_every_row_of_the_table_has_a_test() -> None:
    section = PAGE.partition("## Deployment paths")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (.+?) \| (yes|no|not tested) \|", section, re.MULTILINE)
    named = {re.sub(r"[^a-z0-9]+", "_", path.lower()).strip("_"): works for path, works in rows}
    tests = {name for name in globals() if name.startswith("test_")}
    assert len(named) > 15
    for path, works in named.items():
        ending = {"yes": "works", "no": "does_not", "not tested": None}[works]
        assert ending is None or f"test_{path}_{ending}" in tests, path


@BOTH
def test_copy_and_pickle_works(config: DentConfig, tiny_cnn: nn.Sequential, x: Tensor) -> None:
    defended = Dent(tiny_cnn, config)
    expected = defended(x)
    for twin in (copy.deepcopy(defended), pickle.loads(pickle.dumps(defended))):  # noqa: S301
        assert twin.config == config
        assert torch.equal(twin(x), expected)


@BOTH
def test_weights_and_configuration_in_files_works(
    config: DentConfig, tiny_cnn: nn.Sequential, x: Tensor, tmp_path: Path
) -> None:
    save_file(tiny_cnn.state_dict(), tmp_path / "weights.safetensors")
    (tmp_path / "dent.json").write_text(config.to_json())
    model = make_tiny_cnn()
    model.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    restored = Dent(model, DentConfig.from_json((tmp_path / "dent.json").read_text()))
    assert torch.equal(restored(x), Dent(tiny_cnn, config)(x))


def test_state_dict_works(tiny_cnn: nn.Sequential, x: Tensor) -> None:
    defended = Dent(tiny_cnn, BATCH)
    assert {name.removeprefix("model.") for name in defended.state_dict()} == set(
        tiny_cnn.state_dict()
    )
    other = Dent(make_tiny_cnn(), BATCH)
    assert not torch.equal(other(x), defended(x))
    other.load_state_dict(defended.state_dict())
    assert torch.equal(other(x), defended(x))


def test_torch_save_of_the_object_does_not(tiny_cnn: nn.Sequential) -> None:
    file = io.BytesIO()
    torch.save(Dent(tiny_cnn, BATCH), file)
    file.seek(0)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        torch.load(file)


@BOTH
def test_torch_inference_mode_and_no_grad_works(
    config: DentConfig, tiny_cnn: nn.Sequential, x: Tensor
) -> None:
    defended = Dent(tiny_cnn, config)
    expected = defended(x)
    with torch.no_grad():
        assert torch.equal(defended(x), expected)
    with torch.inference_mode():
        assert torch.equal(defended(x.clone()), expected)


@BOTH
def test_autocast_works(config: DentConfig, tiny_cnn: nn.Sequential, x: Tensor) -> None:
    defended = Dent(tiny_cnn, config)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        logits = defended(x)
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), defended(x), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_another_precision_works(dtype: torch.dtype, tiny_cnn: nn.Sequential, x: Tensor) -> None:
    expected = Dent(copy.deepcopy(tiny_cnn), BATCH)(x)
    logits = Dent(tiny_cnn, BATCH).to(dtype)(x.to(dtype))
    assert logits.dtype == dtype
    torch.testing.assert_close(logits.float(), expected, rtol=0.05, atol=0.05)


def test_performance_compile_true_works(
    tiny_cnn: nn.Sequential, x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More in tests/test_compile.py; here without the C++ compiler."""
    torch._dynamo.reset()
    compiled = torch.compile(
        adapted_model._call, fullgraph=True, dynamic=False, backend="aot_eager"
    )
    monkeypatch.setattr(adapted_model, "_compiled", lambda: compiled)
    with warnings.catch_warnings():
        warnings.simplefilter("error", CompileWarning)
        logits = Dent(tiny_cnn, BATCH, Performance(compile=True))(x)
    torch.testing.assert_close(logits, Dent(tiny_cnn, BATCH)(x))


@pytest.mark.slow
def test_torch_compile_around_a_dent_fullgraph_does_not(tiny_cnn: nn.Sequential, x: Tensor) -> None:
    """Without `fullgraph`, it runs partly uncompiled and gives the same logits."""
    torch._dynamo.reset()
    defended = Dent(tiny_cnn, BATCH)
    with pytest.raises(torch._dynamo.exc.Unsupported):
        torch.compile(defended, backend="eager", fullgraph=True)(x)
    torch._dynamo.reset()
    assert torch.equal(torch.compile(defended, backend="eager")(x), defended(x))


def test_torchscript_does_not(tiny_cnn: nn.Sequential, x: Tensor) -> None:
    for defended in (Dent(tiny_cnn, BATCH), nn.Sequential(Dent(tiny_cnn, SAMPLE))):
        with pytest.raises(ExportError, match="cannot be scripted, traced or exported"):
            torch.jit.script(defended)
        with pytest.raises(ExportError, match="cannot be scripted, traced or exported"):
            torch.jit.trace(defended, x)
    with pytest.raises(UnsupportedModelError, match="wrap the model it was scripted from"):
        Dent(torch.jit.script(tiny_cnn), BATCH)


def test_torch_export_does_not(tiny_cnn: nn.Sequential, x: Tensor) -> None:
    defended = Dent(tiny_cnn, BATCH)
    with pytest.raises(ExportError, match="cannot be scripted, traced or exported"):
        torch.export.export(defended, (x,), strict=False)
    # torch 2.6 cannot tell that it is exporting, and fails by itself at unsupported code.
    said = "ExportError" if hasattr(torch.compiler, "is_exporting") else "from user code"
    with pytest.raises(Exception, match=said):
        torch.export.export(defended, (x,), strict=True)


def test_onnx_does_not(tiny_cnn: nn.Sequential, x: Tensor) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ExportError, match="cannot be scripted, traced or exported"):
            torch.onnx.export(Dent(tiny_cnn, BATCH), (x,), io.BytesIO(), dynamo=False)


def test_export_of_unwrap_works(tiny_cnn: nn.Sequential, x: Tensor) -> None:
    """The export contains only the static model, without the defense."""
    exported = torch.export.export(Dent(tiny_cnn, BATCH).unwrap(), (x,)).module()
    torch.testing.assert_close(exported(x), tiny_cnn(x))
    assert not torch.allclose(exported(x), Dent(tiny_cnn, BATCH)(x), atol=1e-4)


@BOTH
def test_dataparallel_around_a_dent_works(
    config: DentConfig, tiny_cnn: nn.Sequential, x: Tensor
) -> None:
    """On several devices, each replica adapts to its part (see tests/test_adapted_model.py)."""
    defended = Dent(tiny_cnn, config)
    assert torch.equal(nn.DataParallel(defended)(x), defended(x))


def test_a_dent_around_dataparallel_does_not(tiny_cnn: nn.Sequential) -> None:
    with pytest.raises(UnsupportedModelError, match=r"wrap its \.module"):
        Dent(nn.DataParallel(tiny_cnn), BATCH)


def _serve_share(rank: int, port: int, defended: Dent, x: Tensor, results: object) -> None:
    torch.set_num_threads(1)
    store = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", store, rank=rank, world_size=2)
    try:
        parallel = nn.parallel.DistributedDataParallel(defended)
        with torch.no_grad():
            logits = parallel(x.chunk(2)[rank])
        gathered = [torch.empty_like(logits) for _ in range(2)]
        torch.distributed.all_gather(gathered, logits)
        if rank == 0:
            results.put(torch.cat(gathered).numpy())  # type: ignore[attr-defined]
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.skipif(sys.platform == "win32", reason="gloo over TCP is tested on Unix alone")
def test_distributeddataparallel_around_a_dent_works(tiny_cnn: nn.Sequential, x: Tensor) -> None:
    """Each process adapts to its own batch, so the logits are those of the parts."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    defended = Dent(tiny_cnn, BATCH)
    workers = [
        context.Process(target=_serve_share, args=(rank, port, defended, x, results))
        for rank in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    found = torch.from_numpy(results.get())
    torch.testing.assert_close(found, torch.cat([defended(part) for part in x.chunk(2)]))
    assert not torch.allclose(found, defended(x), rtol=1e-4, atol=1e-5)


def test_dataloader_workers_works(tiny_cnn: nn.Sequential, x: Tensor) -> None:
    """The workers only load data; the defense stays in the main process."""
    defended = Dent(tiny_cnn, BATCH)
    loader = DataLoader(TensorDataset(x), batch_size=3, num_workers=2)
    with torch.inference_mode():
        found = torch.cat([defended(batch) for (batch,) in loader])
    assert torch.equal(found, torch.cat([defended(part) for part in x.split(3)]))


@BOTH
def test_quantized_layers_does_not(config: DentConfig, tiny_cnn: nn.Sequential) -> None:
    """Their gradient is 0 and torch only warns, so the defense would be the static model."""
    quantization = torch.ao.quantization
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dynamic = quantization.quantize_dynamic(tiny_cnn, {nn.Linear}, dtype=torch.qint8)
        static = nn.Sequential(quantization.QuantStub(), tiny_cnn, quantization.DeQuantStub())
        static.eval().qconfig = quantization.get_default_qconfig("fbgemm")
        quantization.prepare(static, inplace=True)
        quantization.convert(static, inplace=True)
    for model, layer in ((dynamic, "'8' .Linear."), (static, "'0' .Quantize.")):
        with pytest.raises(UnsupportedModelError, match=f"Layer {layer} is quantized"):
            Dent(model, config)


def test_fused_batchnorm_does_not(tiny_cnn: nn.Sequential) -> None:
    """After BatchNorm is fused into the convolutions, no layer is left to adapt."""
    fused = torch.ao.quantization.fuse_modules(tiny_cnn.eval(), [["0", "1", "2"], ["3", "4", "5"]])
    with pytest.raises(UnsupportedModelError, match="no normalization layer") as refused:
        Dent(fused, BATCH)
    assert "Was BatchNorm fused into the convolutions?" in str(refused.value)
    Dent(fused, DentConfig(adapt_affine=False, smoothing=SmoothingConfig(sigma=0.5)))


def test_threads_works(tiny_cnn: nn.Sequential, x: Tensor) -> None:
    """More in tests/test_defense.py."""
    defended = Dent(tiny_cnn, BATCH)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(defended, x.split(2)))
    assert torch.equal(torch.cat(found), torch.cat([defended(part) for part in x.split(2)]))


def test_vmap_does_not(tiny_cnn: nn.Sequential, x: Tensor) -> None:
    defended = Dent(tiny_cnn, BATCH)
    with pytest.raises(InputError, match=r"torch\.func .* cannot pass through a defense"):
        torch.vmap(lambda sample: defended(sample[None])[0])(x)
