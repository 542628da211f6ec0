"""End-to-end tests of `dent train` on a folder of real images."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from torchvision.utils import save_image

from dent import data, models
from dent.cli.app import main
from tests.cli import here
from tests.cli.process import dent

TRAIN = (
    *("train", "--recipe", "fast", "--norm", "linf", "--model", "resnet-8-1", "--epochs", "1"),
    *("--batch-size", "16", "--dataset", "imagefolder-c32", "--data", "images", "--device", "cpu"),
    *("--watched", "10", "--pgd", "6", "--autoattack", "0", "--out", "out"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with five training images and two test images per class."""
    root = tmp_path_factory.mktemp("train")
    sample = data.load("cifar10-sample")
    images, labels = sample.batch(range(70))
    for at, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        split = "train" if at < 50 else "val"
        place = root / "images" / split / sample.classes[label]
        place.mkdir(parents=True, exist_ok=True)
        save_image(image, place / f"{at}.png")
    return root


def test_trained_model_has_a_card_and_can_be_loaded_and_evaluated(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = dent(*TRAIN, "--json", cwd=folder)
    assert ran.returncode == 0, ran.stderr
    result = json.loads(ran.stdout)
    assert [line["epoch"] for line in result["metrics"]] == [1]
    natural, same, robust = result["card"]["accuracies"]
    assert (natural["total"], robust["total"], robust["attack"]) == (10, 6, "PGD-20")
    assert (same["total"], same["attack"]) == (6, None)
    assert result["card"]["dataset"].startswith("imagefolder")
    model = models.load("resnet-8-1", weights=folder / result["best"])
    assert not model.training
    before = (folder / "out" / "last.safetensors").read_bytes()

    monkeypatch.chdir(folder)
    monkeypatch.setenv("DENT_DATA", str(folder / "cache"))
    again = here.dent(*TRAIN, "--n", "500")  # the same training: there are fewer images
    assert again.code == 0, again.err
    assert "--n 500 is larger than imagefolder-c32: using all 50 images." in again.err
    assert "Model card: out/card.json" in again.out
    assert "PGD-20 at linf 8/255:" in again.out
    assert (folder / "out" / "last.safetensors").read_bytes() == before

    evaluated = here.dent(
        *("evaluate", "--model", "resnet-8-1", "--weights", result["best"], "--n", "4"),
        *("--batch-size", "4", "--defense", "dent+", "--iterations", "1", "--out", "run"),
    )
    assert evaluated.code == 0, evaluated.err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("--recipe", "adversrial"), "Did you mean 'adversarial'?"),
        (("--model", "resnet-9-1"), "the depth must be 6n+2"),
        (("--eps", "0"), "must be above 0"),
        (("--watched", "20", "--pgd", "1", "--out", "o2"), "20 watched ones, too few"),
        (("--dataset", "cifar10-sample"), "has no 'train' split"),
        (("--precision", "fp16", "--out", "o3"), "precision 'fp16' cannot be used here"),
        (("--weights", "missing.safetensors"), "no weights file"),
        (("--dataset", "my:data"), "my:data is a factory: leave out --data"),
    ],
)
def test_invalid_training_options_are_refused(
    folder: Path,
    changes: tuple[str, ...],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DENT_DATA", str(folder / "cache"))
    monkeypatch.setattr("sys.argv", ["dent", *TRAIN, *changes])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (folder / "o2").exists()
    assert not (folder / "o3").exists()


def test_a_folder_whose_splits_have_the_same_images_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for split in ("train", "val"):
        shutil.copytree(folder / "images" / "val", tmp_path / "images" / split)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DENT_DATA", str(tmp_path / "cache"))
    ran = here.dent(*TRAIN)
    assert ran.code == 2
    assert "train split and the test split of imagefolder-c32 have the same images" in ran.err
    assert not (tmp_path / "out").exists()


def test_test_images_that_are_also_trained_on_are_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folder / "images", tmp_path / "images")
    known, *_ = sorted((tmp_path / "images" / "train" / "cat").iterdir())
    shutil.copy(known, tmp_path / "images" / "val" / "cat" / "copy.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DENT_DATA", str(tmp_path / "cache"))
    ran = here.dent(*TRAIN)
    assert ran.code == 0
    told = " ".join(ran.err.split())
    assert (
        "1 of 21 test images of imagefolder-c32 is also in its train split (cat/copy.png)" in told
    )


FACTORIES = """
from dent import data
from dent.data import ArrayDataset

SAMPLE = data.load("cifar10-sample")


def part(split, rows):
    return ArrayDataset("mine", split, SAMPLE.classes, SAMPLE.pixels[rows], SAMPLE.labels[rows])


def both(split="test"):
    return part(split, slice(50) if split == "train" else slice(50, 70))


def tests():
    return part("test", slice(20))


def deaf(split="test"):
    return part("test", slice(20))


def trains(split="train"):
    return part(split, slice(50))


def same(split="test"):
    return part(split, slice(20))
"""


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, ...]]:
    """Write the module `own_splits`, and return a command without its dataset."""
    (tmp_path / "own_splits.py").write_text(FACTORIES)
    monkeypatch.chdir(tmp_path)
    at = TRAIN.index("--dataset")
    yield TRAIN[:at] + TRAIN[at + 4 :]
    sys.modules.pop("own_splits", None)


def test_a_factory_gives_the_train_split_and_the_test_split(factories: tuple[str, ...]) -> None:
    ran = here.dent(*factories, "--dataset", "own_splits:both", "--json")
    assert ran.code == 0, ran.err
    spec = json.loads(Path("out/run.json").read_text())["spec"]
    assert (spec["train"]["name"], spec["watch"]["name"]) == ("own_splits:both",) * 2
    assert (spec["train"]["images"], spec["watch"]["images"]) == (50, 20)
    natural = json.loads(ran.out)["card"]["accuracies"][0]
    assert natural["provenance"] == "measured by dent train on the first 10 of own_splits:both test"
    again = here.dent(*factories, "--dataset", "own_splits:both")
    assert again.code == 0, again.err
    # A card's evaluation records the same name, which every command calls without arguments.
    weights = ("--weights", "out/best.safetensors")
    verified = here.dent("verify", "out/measured-6", "--allow-code", *weights, "--json")
    assert (verified.code, json.loads(verified.out)["status"]) == (0, "verified"), verified.out


@pytest.mark.parametrize(
    ("factory", "says"),
    [
        ("tests", "It is called with split='train', and without arguments for the test split"),
        ("deaf", "(split='train') must return that split, got a dataset with the split 'test'"),
        ("trains", "return the test split without arguments"),
        ("same", "return the test split without arguments"),
    ],
)
def test_a_factory_without_two_splits_is_refused(
    factories: tuple[str, ...], factory: str, says: str
) -> None:
    ran = here.dent(*factories, "--dataset", f"own_splits:{factory}")
    assert ran.code == 2
    assert says in ran.err
    assert not Path("out").exists()
