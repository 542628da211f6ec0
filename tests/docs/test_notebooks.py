"""The notebooks match the tutorials, and their code runs from top to bottom."""

import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import nbformat
import pytest

from tools.docs_hooks import on_page_markdown
from tools.notebooks import CLONE, FOLDER, NAMES, TUTORIALS, notebook, written


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_up_to_date_with_its_tutorial(name: str) -> None:
    """To update the notebooks: `python tools/notebooks.py`."""
    assert (FOLDER / f"{name}.ipynb").read_text(encoding="utf-8") == written(name)
    page = (TUTORIALS / f"{name}.md").read_text(encoding="utf-8")
    assert f"](../notebooks/{name}.ipynb)" in page.partition("\n## ")[0]


def test_the_folder_holds_exactly_the_known_notebooks() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == set(NAMES)


@pytest.mark.parametrize("path", sorted(TUTORIALS.glob("*.md")), ids=lambda path: path.stem)
def test_a_notebook_has_all_code_and_headings_of_its_tutorial(path: Path) -> None:
    page = path.read_text(encoding="utf-8")
    made = notebook(page)
    nbformat.validate(made)
    first, *code = [cell.source for cell in made.cells if cell.cell_type == "code"]
    assert first == f"%pip install torch-dent\n{CLONE}"
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert code == [block.strip("\n") for block in blocks]
    text = "\n".join(cell.source for cell in made.cells if cell.cell_type == "markdown")
    for heading in re.findall(r"^#+ .+$", page, re.MULTILINE):
        assert heading in text
    assert not re.search(r"\]\((?!https?://)", text)
    assert "```python" not in text


def test_a_page_without_code_is_refused() -> None:
    with pytest.raises(ValueError, match="no block of Python"):
        notebook("# Only text\n")


@pytest.mark.slow  # test_pages.py runs the same code
@pytest.mark.parametrize("name", NAMES)
def test_the_cells_of_a_notebook_run_in_plain_python(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    module = ModuleType("cells")
    monkeypatch.setitem(sys.modules, "cells", module)
    file, ran = FOLDER / f"{name}.ipynb", 0
    for cell in nbformat.read(file, as_version=4).cells:
        if cell.cell_type == "code" and not cell.source.startswith("%"):
            exec(compile(cell.source, f"{file}:{cell.id}", "exec"), vars(module))  # noqa: S102
            ran += 1
    assert ran >= 2


def test_a_badge_opens_colab_on_the_published_site_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    page = SimpleNamespace(file=SimpleNamespace(src_uri="tutorials/evaluate.md"))
    text = (TUTORIALS / "evaluate.md").read_text(encoding="utf-8")
    monkeypatch.delenv("GITHUB_REPOSITORY", raising=False)
    here = on_page_markdown(text, page)  # type: ignore[arg-type]
    link = "[This page as a notebook](../notebooks/evaluate.ipynb)"
    assert link in here
    assert "Colab" not in here
    monkeypatch.setenv("GITHUB_REPOSITORY", "some/fork")
    published = on_page_markdown(text, page)  # type: ignore[arg-type]
    address = "https://colab.research.google.com/github/some/fork/blob/main/docs/notebooks"
    badge = f"[![Open in Colab](../figures/colab.svg)]({address}/evaluate.ipynb)"
    assert published == here.replace(link, badge)
