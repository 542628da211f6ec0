"""The oldest supported torch is the one that the CI workflow installs and the docs name."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("package", ["torch", "torchvision"])
def test_the_lower_version_bound_is_tested_in_ci_and_documented(package: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (bound,) = (d for d in project["dependencies"] if re.match(rf"{package}>=", d))
    oldest = bound.partition(">=")[2]
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert f"'{package}=={oldest}.0'" in workflow
    assert f"{package} {oldest}" in (ROOT / "docs" / "systems.md").read_text()
