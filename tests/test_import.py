"""`import dent` does not import torch; public names load their modules on first use."""

import json
import subprocess
import sys

import pytest

import dent
from dent import attacks, defenses, evaluation

SCRIPT = """
import json, sys
import dent
first = set(sys.modules)
import torch
torch_alone = set(sys.modules)
for name in dent.__all__:
    if name != "evaluate":  # the whole engine, once it is asked for
        getattr(dent, name)
print(json.dumps([sorted(first), sorted(set(sys.modules) - torch_alone)]))
"""


def test_import_loads_only_the_standard_library_and_names_add_only_torch() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=300
    )
    imported, used = ({name.split(".")[0] for name in names} for names in json.loads(done.stdout))
    assert "dent" in imported & used
    assert not imported & {"torch", "numpy"}
    strange = used - set(sys.stdlib_module_names) - {"dent", "torch"}
    assert not strange


def test_every_public_name_exists_and_is_listed() -> None:
    assert set(dent.__all__) <= set(dir(dent))
    for name in dent.__all__:
        assert getattr(dent, name) is not None
    from dent import Dent, DentConfig, config, threat  # noqa: PLC0415

    assert Dent.__module__ == "dent.defenses.dent"
    assert DentConfig is config.DentConfig
    assert threat.ThreatModel is dent.ThreatModel


def test_the_loaded_modules_define_exactly_the_public_names() -> None:
    for package in (dent, attacks, evaluation):
        names = [name for listed in package._MODULES.values() for name in listed]
        public = set(package.__all__) - {"__version__"}
        assert set(names) == public
        assert len(names) == len(public)


def test_dir_lists_public_names_and_nothing_else() -> None:
    for package in (dent, attacks, evaluation):
        hidden = {name for name in dir(package) if name.startswith("__")}
        submodules = set(dent._SUBMODULES) if package is dent else set()
        assert set(dir(package)) - hidden == {*package.__all__, *submodules} - hidden
        assert "__doc__" in hidden


def test_submodules_need_no_import_of_their_own() -> None:
    program = f"import dent; print(*(getattr(dent, n).__name__ for n in {dent._SUBMODULES}))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=300
    )
    assert done.stdout.split() == [f"dent.{name}" for name in dent._SUBMODULES]


def test_a_public_name_is_the_same_object_in_every_package() -> None:
    """Also if a submodule had the name of a public function, which would hide it."""
    from dent import distributed, report  # noqa: PLC0415

    assert defenses.Dent is dent.Dent
    assert evaluation.merge is distributed.merge
    assert report.load_run is evaluation.load_run
    assert report.LoadedRun is evaluation.RecordedRun


def test_an_unknown_name_raises_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'dent' has no attribute 'Dnet'"):
        dent.Dnet  # type: ignore[attr-defined]  # noqa: B018


def test_importing_the_evaluation_loads_no_attack() -> None:
    program = (
        "import json, sys, dent.evaluation; from dent.evaluation import EvaluationSpec, Settings; "
        "print(json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=300
    )
    loaded = json.loads(done.stdout)
    assert "dent.evaluation.records.spec" in loaded
    assert not [name for name in loaded if name.startswith(("dent.attacks", "pyautoattack"))]
