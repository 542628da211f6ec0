import itertools
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from dent import models
from dent.errors import UnknownNameError, UnsupportedModelError, WeightsError
from dent.models.autoattack_resnet18 import ResNet18

_numbers = itertools.count()


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Return a function that writes code to a new module in the current folder."""
    monkeypatch.chdir(tmp_path)

    def write(code: str) -> str:
        name = f"user_models_{next(_numbers)}"
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(code))
        return name

    return write


NETS = """
    import torch
    from torch import nn
    from collections import OrderedDict

    def make():
        torch.manual_seed(3)
        return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(12, 7))

    class Net(nn.Linear):
        def __init__(self):
            super().__init__(12, 7)

    class Zoo:
        @staticmethod
        def small():
            return make()

    def broken():
        raise KeyError("which weights?")

    def needy(width):
        return nn.Linear(width, 2)

    def state():
        return make().state_dict()

    model = make()
    _private = make
    number = 3
"""


@pytest.mark.parametrize("factory", ["make", "Net", "Zoo.small"])
def test_a_factory_in_the_current_folder_is_called(
    module: Callable[[str], str], factory: str
) -> None:
    path = list(sys.path)
    model = models.load(f"{module(NETS)}:{factory}")
    assert isinstance(model, nn.Module)
    assert not any(m.training for m in model.modules())
    assert sys.path == path


def test_a_factory_in_a_package_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "user_package").mkdir()
    (tmp_path / "user_package" / "helpers.py").write_text("WIDTH = 6")
    (tmp_path / "user_package" / "nets.py").write_text(
        "from torch import nn\ndef make():\n"
        "    from user_package.helpers import WIDTH\n    return nn.Linear(WIDTH, 2)"
    )
    model = models.load("user_package.nets:make")
    assert isinstance(model, nn.Linear)
    assert model.in_features == 6


def test_an_installed_factory_is_called_and_gets_its_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    weights = ResNet18().state_dict()
    torch.save({"state_dict": {f"module.{k}": v for k, v in weights.items()}}, tmp_path / "w.pth")
    model = models.load(
        "dent.models.autoattack_resnet18:ResNet18", weights=tmp_path / "w.pth", num_classes=10
    )
    assert all(torch.equal(model.state_dict()[name], weights[name]) for name in weights)


def test_weights_that_do_not_fit_a_factory_are_refused(
    module: Callable[[str], str], tmp_path: Path
) -> None:
    torch.save(nn.Linear(12, 9).state_dict(), tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"w\.pt does not fit Net"):
        models.load(f"{module(NETS)}:Net", weights="w.pt")


@pytest.mark.parametrize(
    ("factory", "said"),
    [
        ("broken", r"raised KeyError: 'which weights\?'$"),
        ("needy", "raised TypeError: .*width.*give every argument a default"),
        ("state", r"must return a torch\.nn\.Module, got collections\.OrderedDict"),
        ("model", "must be a function or class that makes a new model, got torch"),
        ("number", "must be a function or class that makes a new model, got builtins.int"),
    ],
)
def test_an_attribute_that_is_not_a_working_model_factory_is_refused(
    module: Callable[[str], str], factory: str, said: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=said):
        models.load(f"{module(NETS)}:{factory}")


def test_a_misspelled_factory_name_gets_a_suggestion(module: Callable[[str], str]) -> None:
    name = module(NETS)
    with pytest.raises(
        UnknownNameError, match=rf"{name}\.py\) has no 'mak'\. Did you mean 'make'\?"
    ):
        models.load(f"{name}:mak")
    with pytest.raises(UnknownNameError, match=r"has no 'Zoo\.smal'\. Did you mean 'small'\?"):
        models.load(f"{name}:Zoo.smal")


@pytest.mark.parametrize("name", ["no_such_module_here:make", "torch.no_such_part:make"])
def test_error_for_an_unknown_module_names_the_searched_folder(name: str) -> None:
    missing = name.partition(":")[0]
    with pytest.raises(UnknownNameError, match=f"no module named '{missing}' in {Path.cwd()}"):
        models.load(name)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import no_such_module_here", "importing user_.* raised ModuleNotFoundError: .*no_such"),
        ("1 / 0", "importing user_.* raised ZeroDivisionError"),
        ("def make(:", "importing user_.* raised SyntaxError"),
    ],
)
def test_a_module_that_fails_to_import_is_reported_with_its_exception(
    module: Callable[[str], str], code: str, said: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=said):
        models.load(f"{module(code)}:make")


@pytest.mark.parametrize("spec", ["a:", ":b", "a:b:c", "a b:c", "a..b:c", "a:b()", "3a:b", "a.:b"])
def test_malformed_factory_names_are_refused(spec: str) -> None:
    with pytest.raises(UnknownNameError, match=r"expected package\.module:factory"):
        models.load(spec)


def test_error_for_a_file_path_suggests_the_module_name() -> None:
    for file, module in (("./nets/small.py", "nets.small"), ("small.py", "small")):
        with pytest.raises(UnknownNameError, match=rf"for that file write {module}:make$"):
            models.load(f"{file}:make")
