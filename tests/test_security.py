"""Promises of SECURITY.md about loading files, and the existence of the tests that it names."""

import ast
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from dent import WeightsError
from dent.evaluation.records.schema import TensorRef
from dent.models import load

SOURCES = sorted((Path(__file__).parents[1] / "src").rglob("*.py"))
UNPICKLING = re.compile(r"((cloud)?pickle|dill|joblib|marshal|yaml)\.(load|loads)|(.*\.)?Unpickler")
WITHIN_A_CLUSTER = "tasks.py:"
"""The module in which workers unpickle data of the driver; no other module may unpickle."""


def calls() -> Iterator[tuple[str, str, ast.Call]]:
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                yield f"{path.name}:{node.lineno}", ast.unparse(node.func), node


def keyword(call: ast.Call, name: str) -> str | None:
    return next((ast.unparse(each.value) for each in call.keywords if each.arg == name), None)


def test_no_source_loads_data_in_a_way_that_could_run_code() -> None:
    seen = set()
    for where, function, call in calls():
        assert function not in ("eval", "exec"), where
        assert not UNPICKLING.fullmatch(function), where
        if function == "torch.load" and not where.startswith(WITHIN_A_CLUSTER):
            assert keyword(call, "weights_only") == "True", where
        if function in ("np.load", "numpy.load"):
            assert keyword(call, "allow_pickle") == "False", where
        if function.endswith("Environment"):
            assert keyword(call, "autoescape") == "True", where
        if function.endswith((".extract", ".extractall", "unpack_archive")):
            pytest.fail(f"{where} unpacks an archive: read its members instead")
        seen.add(function)
    assert {"torch.load", "np.load", "Environment"} <= seen  # the sources still use these names


def test_no_source_imports_a_function_that_unpickles() -> None:
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                for name in node.names:
                    assert not UNPICKLING.fullmatch(f"{node.module}.{name.name}"), path


ROOT = Path(__file__).parents[1]
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def promises() -> Iterator[str]:
    """Yield the rows of the tables in SECURITY.md whose last column is `test`."""
    inside = False
    for line in (ROOT / "SECURITY.md").read_text().splitlines():
        if not line.startswith("|"):
            inside = False
        elif line.replace(" ", "").endswith("|test|"):
            inside = True
        elif inside and not set(line) <= set("|- :"):
            yield line


def test_every_promise_names_tests_that_exist() -> None:
    functions: dict[str, set[str]] = {}
    rows = list(promises())
    assert rows
    for row in rows:
        assert NAMED.search(row.rpartition(" | ")[2]), f"names no test: {row}"
    for path, name in NAMED.findall((ROOT / "SECURITY.md").read_text()):
        if path not in functions:
            tree = ast.parse((ROOT / path).read_text())
            functions[path] = {
                node.name
                for node in ast.walk(tree)
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            }
        assert name in functions[path], f"{path} has no {name}"


def test_templates_do_not_disable_escaping() -> None:
    templates = sorted((Path(__file__).parents[1] / "src").rglob("*.j2"))
    assert len(templates) > 3
    for path in templates:
        assert "autoescape" not in path.read_text(), path
        scripts = path.read_text().count("<script")
        assert scripts == (path.name == "board.html.j2"), path


def test_the_board_page_allows_only_the_script_of_the_package() -> None:
    template = Path(__file__).parents[1] / "src/dent/board/templates/board.html.j2"
    assert "<script>{{ script }}</script>" in template.read_text()
    assert "script-src 'sha256-{{ script_hash }}'" in template.read_text()
    assert "unsafe" not in re.sub("style-src 'unsafe-inline'", "", template.read_text())


class Trap:
    """Creates a folder when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> object:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("name", ["weights.pt", "weights.bin", "weights.safetensors"])
def test_loading_weights_runs_no_code(name: str, tmp_path: Path) -> None:
    torch.save({"state_dict": Trap(tmp_path / "sprung")}, tmp_path / name)
    with pytest.raises(WeightsError):
        load("resnet-8-1", weights=tmp_path / name)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    "path",
    [
        "../other.safetensors",
        "/etc/passwd",
        "adversarial/../../other.safetensors",
        "adversarial/sub/other.safetensors",
        "adversarial\\other.safetensors",
        "adversarial/a.safetensors\n",
        "adversarial/a.pt",
        "adversarial/.safetensors",
    ],
)
def test_a_record_refuses_files_outside_of_its_folder(path: str) -> None:
    fields = {"file": path, "sha256": "0" * 64, "shape": [1, 3, 8, 8]}
    with pytest.raises(ValidationError, match="file"):
        TypeAdapter(TensorRef).validate_python(fields)
