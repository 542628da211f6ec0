"""RobustBench models: listed without RobustBench, loaded by its code from local files."""

import importlib.util
import io
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from dent import models
from dent.errors import ConfigError, MissingExtraError, UnknownNameError, WeightsError
from dent.models import robustbench_source
from dent.models.robustbench_package import TABLE, import_robustbench
from tests.models.conftest import prefixed, scrambled
from tools.tabulate_robustbench import tabulate

DING = "robustbench/cifar10/L2/Ding2020MMA"
WONG = "robustbench/cifar10/Linf/Wong2020Fast"
PAPER = (
    "cifar10/Linf/Carmon2019Unlabeled",
    "cifar10/Linf/Wong2020Fast",
    "cifar10/Linf/Ding2020MMA",
    "cifar10/L2/Ding2020MMA",
    "cifar10/L2/Rice2020Overfitting",
    "cifar10/L2/Rony2019Decoupling",
    "cifar10/Linf/Wu2020Adversarial_extra",
    "cifar10/Linf/Sehwag2020Hydra",
    "cifar10/Linf/Wang2020Improving",
    "cifar10/Linf/Hendrycks2019Using",
    "imagenet/Linf/Wong2020Fast",
)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

needs_robustbench = pytest.mark.skipif(
    importlib.util.find_spec("robustbench") is None,
    reason="robustbench is not installed: pip install torch-dent[zoo]",
)


def architecture(name: str) -> nn.Module:
    """Return the architecture that RobustBench builds for a model, with random weights."""
    _, dataset, norm, short = name.split("/")
    zoo = import_robustbench("robustbench.model_zoo.models").model_dicts
    enums = import_robustbench("robustbench.model_zoo.enums")
    entries = zoo[enums.BenchmarkDataset(dataset)][enums.ThreatModel(norm)]
    model: nn.Module = entries[short]["model"]()
    return scrambled(model)


def lay(name: str, content: object) -> Path:
    file = models.info(name).file
    assert file is not None
    path = Path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return path


def test_the_models_of_the_paper_are_listed_without_robustbench(
    monkeypatch: pytest.MonkeyPatch, models_folder: Path
) -> None:
    monkeypatch.setitem(sys.modules, "robustbench", None)
    listed = set(models.names())
    for name in PAPER:
        assert f"robustbench/{name}" in listed
        assert not models.info(f"robustbench/{name}").present
    assert listed < set(models.names()) | set(models.names("robustbench"))
    carmon = models.info("Carmon2019Unlabeled")
    assert (carmon.num_classes, carmon.threat, carmon.digest) == (10, "linf 8/255", None)
    natural, robust = carmon.accuracies
    assert (natural.correct, natural.total) == (8969, 10_000)
    assert (robust.correct, robust.threat, robust.attack) == (5953, "linf 8/255", "AutoAttack")
    assert carmon.file == str(models_folder / "robustbench/cifar10/Linf/Carmon2019Unlabeled.pt")


@pytest.mark.parametrize(
    ("name", "dataset", "threat"),
    [
        ("robustbench/imagenet/Linf/Wong2020Fast", "imagenet-288", "linf 4/255"),
        ("robustbench/imagenet/Linf/Salman2020Do_R18", "imagenet", "linf 4/255"),
        ("robustbench/cifar100/Linf/Rice2020Overfitting", "cifar100", "linf 8/255"),
        ("L2/Standard", "cifar10", None),
    ],
)
def test_info_reports_the_training_dataset_and_threat_model(
    name: str, dataset: str, threat: str | None
) -> None:
    known = models.info(name)
    assert (known.dataset, known.threat) == (dataset, threat)


def test_an_ambiguous_short_name_is_refused() -> None:
    with pytest.raises(
        UnknownNameError,
        match="can mean 2 models: robustbench/cifar10/Linf/Ding2020MMA, "
        "robustbench/cifar10/L2/Ding2020MMA",
    ):
        models.load("Ding2020MMA")
    assert models.info("L2/Ding2020MMA").name == DING


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Carmon2019Unlabled", "Did you mean 'robustbench/cifar10/Linf/Carmon2019Unlabeled'?"),
        ("robustbench/cifar10/Linf/Wong2020Fas", "Did you mean 'robustbench/cifar10/Linf/Wong20"),
        ("robustbench/imagenet/Linf/Standard_R50", "torchvision/resnet50.IMAGENET1K_V1"),
    ],
)
def test_a_misspelled_name_gets_a_suggestion(name: str, said: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        models.info(name)
    assert said in str(caught.value)


def test_a_wrong_number_of_classes_is_refused_before_the_weights_are_needed() -> None:
    with pytest.raises(
        ConfigError, match=r"has 10 classes, but the data has 100.* dataset cifar10"
    ):
        models.load(DING, num_classes=100)


def test_error_without_robustbench_names_the_extra_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("robustbench", "robustbench.utils"):
        monkeypatch.setitem(sys.modules, name, None)  # makes the import fail
    with pytest.raises(MissingExtraError, match=r'pip install "torch-dent\[zoo\]"'):
        models.load(DING)


@needs_robustbench
def test_the_bundled_table_matches_the_installed_robustbench() -> None:
    """To update the table: `python tools/tabulate_robustbench.py`."""
    assert json.loads(TABLE.read_text()) == tabulate()


@needs_robustbench
def test_substitute_modules_are_removed_after_the_import() -> None:
    import_robustbench("robustbench.utils")
    for name in ("autoattack", "autoattack.state", "pkg_resources"):
        assert name not in sys.modules


@needs_robustbench
@pytest.mark.parametrize("wrapped", [lambda s: s, lambda s: {"state_dict": prefixed(s, "module.")}])
def test_a_manually_placed_file_is_loaded(wrapped: Any, images: Tensor) -> None:
    saved = architecture(DING)
    lay(DING, wrapped(saved.state_dict()))
    assert models.info(DING).present
    loaded = models.load(DING)
    x = images[:2]
    with torch.no_grad():
        assert torch.equal(loaded(x), saved(x))
    models.check_model(loaded, 10, images)


@needs_robustbench
def test_the_weights_argument_loads_a_file_from_elsewhere(tmp_path: Path) -> None:
    saved = architecture(DING)
    torch.save(saved.state_dict(), tmp_path / "mine.pth")
    loaded = models.load(DING, weights=tmp_path / "mine.pth")
    assert models.weights_digest(loaded) == models.weights_digest(saved)


@needs_robustbench
def test_missing_normalization_is_accepted_but_missing_weights_are_refused(images: Tensor) -> None:
    """RobustBench's own file of this model lacks the normalization, which is not a weight.

    If the file has an entry `conv1.scores`, RobustBench also accepts missing weights.
    """
    saved = architecture(WONG)
    state = {k: v for k, v in saved.state_dict().items() if k not in ("mu", "sigma")}
    assert len(state) == len(saved.state_dict()) - 2
    lay(WONG, state)
    with torch.no_grad():
        assert torch.equal(models.load(WONG)(images[:2]), saved(images[:2]))
    state["conv1.scores"] = state.pop("conv1.weight") + 1
    lay(WONG, state)
    count = len(list(saved.parameters()))
    with pytest.raises(WeightsError, match=rf"1 of {count} parameters did not come.*conv1\.weight"):
        models.load(WONG)


@needs_robustbench
def test_the_file_of_another_model_is_refused() -> None:
    path = lay(DING, models.resnet("resnet-8-1").state_dict())
    with pytest.raises(WeightsError, match=rf"(?s){path}.*RobustBench's Ding2020MMA"):
        models.load(DING)


@needs_robustbench
def test_weights_with_nan_are_refused() -> None:
    state = architecture(DING).state_dict()
    next(iter(state.values())).view(-1)[0] = float("nan")
    lay(DING, state)
    with pytest.raises(WeightsError, match="NaN or infinite"):
        models.load(DING)


class Dangerous:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@needs_robustbench
def test_pickled_code_in_a_file_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # allows unpickling by default
    marker = tmp_path / "ran"
    lay(DING, {"state_dict": architecture(DING).state_dict(), "note": Dangerous(marker)})
    with pytest.raises(WeightsError, match="was refused, and nothing in it was run"):
        models.load(DING)
    assert not marker.exists()


@needs_robustbench
def test_a_web_page_instead_of_weights_is_recognized() -> None:
    path = lay(DING, {})
    path.write_bytes(b"\n<!DOCTYPE html><html>Google Drive - Virus scan warning</html>")
    with pytest.raises(WeightsError, match=r"contains a web page .* instead of weights"):
        models.load(DING)


@needs_robustbench
def test_error_for_a_failed_download_says_which_file_to_put_where(
    models_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(url: str, path: Path) -> None:
        path.write_bytes(b"half")
        raise ConnectionError("nobody there")

    monkeypatch.setattr(robustbench_source, "_fetch", half)
    with pytest.raises(WeightsError) as caught:
        models.load(DING)
    said = str(caught.value)
    assert f"file:   {models_folder}/robustbench/cifar10/L2/Ding2020MMA.pt\n" in said
    assert "from:   https://drive.google.com/uc?id=13wgY0Q_eor52ltZ0PkfJx5BCZ8cLM52E\n" in said
    assert "(ConnectionError: nobody there)" in said
    assert "digest: none is published" in said
    assert not [path for path in models_folder.rglob("*") if path.is_file()]


QUOTA = """Failed to retrieve file url:

\tToo many users have viewed or downloaded this file recently. Please
\ttry accessing the file again later.

You may still be able to access the file from the browser"""


@needs_robustbench
@pytest.mark.parametrize(
    ("content", "error", "said"),
    [
        ("half", None, r"WeightsError: Ding2020MMA\.pt is damaged or not a file of torch\.save"),
        ("page", None, r"WeightsError: Ding2020MMA\.pt contains a web page"),
        ("half", RuntimeError(QUOTA), "RuntimeError: .*Too many users have viewed or downloaded"),
        (None, None, "OSError: Google Drive gave no file"),
    ],
)
def test_a_partial_download_from_google_drive_leaves_no_file(
    models_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    content: str | None,
    error: Exception | None,
    said: str,
) -> None:
    stream = io.BytesIO()
    torch.save(architecture(DING).state_dict(), stream)
    whole = stream.getvalue()

    def gdown(url: str, output: str, quiet: bool) -> str | None:
        assert url.startswith("https://drive.google.com/")
        assert quiet
        # It writes to a file of its own first, which stays there if it fails.
        part = Path(f"{output}abc.tmp")
        part.write_bytes(b"<html>" if content == "page" else whole[: len(whole) // 2])
        if error is not None:
            raise error
        return None if content is None else str(part.rename(output))

    monkeypatch.setitem(sys.modules, "gdown", SimpleNamespace(download=gdown))
    with pytest.raises(WeightsError, match=rf"could not be downloaded \({said}"):
        models.load(DING)
    assert not [path for path in models_folder.rglob("*") if path.is_file()]
    monkeypatch.setitem(
        sys.modules,
        "gdown",
        SimpleNamespace(download=lambda url, output, quiet: Path(output).write_bytes(whole)),
    )
    models.load(DING)
    assert [path.name for path in (models_folder / "robustbench").rglob("*.pt*")] == [
        "Ding2020MMA.pt"
    ]


@needs_robustbench
def test_a_downloaded_file_is_kept_and_reused(
    models_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = architecture(DING)
    asked = []

    def fetch(url: str, path: Path) -> None:
        asked.append(url)
        torch.save(saved.state_dict(), path)

    monkeypatch.setattr(robustbench_source, "_fetch", fetch)
    for _ in range(2):
        loaded = models.load(DING)
        assert models.weights_digest(loaded) == models.weights_digest(saved)
    assert len(asked) == 1
    kept = [path.name for path in models_folder.rglob("*") if path.is_file()]
    assert kept == ["Ding2020MMA.pt"]


@needs_robustbench
def test_a_single_weights_file_for_an_ensemble_is_refused(tmp_path: Path) -> None:
    name = "robustbench/cifar10/Linf/Chen2020Adversarial"
    with pytest.raises(ConfigError, match=r"3 files.*Chen2020Adversarial\.pt_m2\.pt"):
        models.load(name, weights=tmp_path / "one.pt")


@needs_robustbench
@pytest.mark.slow
def test_the_imagenet_model_wong2020fast_takes_pixels() -> None:
    """Oracle: torchvision's ResNet-50 on images normalized by hand."""
    saved = scrambled(torchvision.models.resnet50())
    lay("robustbench/imagenet/Linf/Wong2020Fast", {"state_dict": prefixed(saved.state_dict(), "")})
    loaded = models.load("robustbench/imagenet/Linf/Wong2020Fast", num_classes=1000)
    x = torch.rand(1, 3, 288, 288)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), saved((x - mean) / std))


@needs_robustbench
@pytest.mark.slow
def test_a_model_that_robustbench_registers_only_with_timm_is_loaded(images: Tensor) -> None:
    name = "robustbench/cifar10/Linf/Debenedetti2022Light_XCiT-S12"
    timm = import_robustbench("timm")
    import_robustbench("robustbench.model_zoo.models")
    saved = scrambled(timm.create_model("debenedetti2022light_xcit_s12_cifar10_linf"))
    lay(name, {"state_dict": saved.get_submodule("model").state_dict()})
    with torch.no_grad():
        torch.testing.assert_close(models.load(name)(images[:2]), saved(images[:2]))
