"""The lists of names that need no torch import agree with the registries."""

import re
from importlib.metadata import version

import pytest

from dent import attacks, data, models, names, training
from dent import defenses as reference
from dent.errors import UnknownNameError
from dent.models.residual import EXAMPLES
from dent.models.robustbench_source import PAPER
from dent.models.weights import SUFFIXES
from dent.paper import scale_names
from dent.support.suggest import closest
from tools import tabulate_catalogues


def test_name_lists_equal_those_of_the_registries() -> None:
    assert attacks.names() == names.ATTACKS
    assert reference.names() == names.DEFENSES
    assert data.names() == names.DATASETS
    assert (*names.models(), *PAPER) == models.names()
    assert tuple(training.RECIPES) == names.RECIPES
    assert scale_names() == names.SCALES
    assert EXAMPLES == names.FAMILY
    assert SUFFIXES == names.WEIGHTS_FILES
    assert models.names("robustbench") == names.catalogue("robustbench")


def test_torchvision_table_matches_the_installed_release() -> None:
    listed = names.catalogue("torchvision")
    assert set(models.names("torchvision")) == set(listed)
    release = tabulate_catalogues.tabulate_torchvision()["version"]
    assert version("torchvision").startswith(f"{release}.")


def test_timm_table_matches_the_installed_release() -> None:
    pytest.importorskip("timm")
    made = tabulate_catalogues.tabulate_timm()
    known = names._table("timm")
    if made["version"] != known["version"]:
        pytest.skip(f"made from timm {known['version']}, and {made['version']} is installed")
    assert made == known


@pytest.mark.parametrize(
    "name",
    [
        *names.models(),
        *PAPER,
        "Carmon2019Unlabeled",
        "cifar10/Linf/Carmon2019Unlabeled",
        "torchvision/resnet50",
        "torchvision/resnet50.IMAGENET1K_V1",
        "timm/resnet50.a1_in1k",
        "timm/resnet50",
        "resnet-26-4",
        "mine:model",
    ],
)
def test_known_model_names_are_accepted(name: str) -> None:
    names.check_model(name)


@pytest.mark.parametrize(
    "name",
    [
        "resnte18-nominal",
        "resnet50",
        "Carmon2019",
        "weights.pt",
        "",
        "torchvision/resnet5O",
        "torchvision/fasterrcnn_resnet50_fpn",
        "timm/resnet5O",
        "robustbench/cifar10/Linf/Carmon",
        "robustbench/imagenet/Linf/Standard_R50",
        "robustbench",
    ],
)
def test_an_unknown_model_gets_the_same_error_as_from_the_registry(name: str) -> None:
    with pytest.raises(UnknownNameError) as early:
        names.check_model(name)
    with pytest.raises(UnknownNameError) as registry:
        models.load(name)
    # The registry names the patch release of torchvision; the table has only the release.
    exact = f"torchvision {version('torchvision').partition('+')[0]}"
    release = f"torchvision {names._table('torchvision')['version']}"
    assert str(early.value) == str(registry.value).replace(exact, release)


def test_unknown_timm_and_torchvision_names_pass_if_a_newer_release_is_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(names, "version", lambda _: "99.0.0")
    names.check_model("timm/brand_new")
    names.check_model("torchvision/brand_new")
    with pytest.raises(UnknownNameError):
        names.check_model("robustbench/cifar10/Linf/BrandNew")


@pytest.mark.parametrize("name", ["imagenet-r232-c224", "imagefolder-c32", "cifar10-c/fog/3"])
def test_dataset_names_with_options_are_accepted_without_checking_the_options(name: str) -> None:
    names.check_dataset(name)


@pytest.mark.parametrize("name", ["mnist", "cifar10-samples", "imagenett", "fog/3", ""])
def test_an_unknown_dataset_gets_the_same_error_as_from_the_registry(name: str) -> None:
    with pytest.raises(UnknownNameError) as early:
        names.check_dataset(name)
    with pytest.raises(UnknownNameError) as registry:
        data.load(name)
    assert str(early.value) == str(registry.value)


def test_a_name_of_the_same_case_is_suggested_first() -> None:
    assert closest("scal", ["ScaleNaive", "scale"]) == "scale"
    assert closest("Scal", ["scale", "ScaleNaive"]) == "ScaleNaive"
    assert closest("SCAL", ["scale", "ScaleNaive"]) == "scale"


def test_messages_about_unknown_names_have_one_form() -> None:
    said = []
    for check, name in (
        (names.check_attack, "apgd-c"),
        (names.check_dataset, "cifar1O"),
        (names.check_defense, "hegde"),
        (names.check_model, "resnte18-nominal"),
        (names.check_recipe, "fsat"),
        (names.check_scale, "gpuu"),
        (names.check_table, "tabel4"),
    ):
        with pytest.raises(UnknownNameError) as caught:
            check(name)
        said.append(str(caught.value))
    form = re.compile(r"there is no \w+ '\S+'\. Did you mean '\S+'\? Expected one of ")
    assert [text for text in said if form.match(text) is None] == []
