"""Print constraints.txt: the installed versions of all dependencies, including those of extras.

Run it in an environment in which the tests pass: `python tools/constraints.py > constraints.txt`.
"""

import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = Path(__file__).parents[1] / "pyproject.toml"
HEAD = """\
# The versions with which the tests of torch-dent passed, on Python {python} and Linux:
#     pip install -c constraints.txt "torch-dent[all]"
# Equal versions are also what makes records of runs equal, bit for bit. By tools/constraints.py.
"""


def closure(requirement: Requirement, seen: dict[tuple[str, str], None]) -> Iterator[str]:
    """Yield a requirement and its dependencies that are installed, as `name==version`."""
    name = canonicalize_name(requirement.name)
    for extra in ("", *sorted(requirement.extras)):
        if (name, extra) in seen:
            continue
        seen[name, extra] = None
        try:
            found = distribution(name)
        except PackageNotFoundError:  # for another operating system
            continue
        if not extra:
            yield f"{name}=={found.version.partition('+')[0]}"
        for text in found.requires or ():
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                yield from closure(needed, seen)


def main() -> None:
    """Print the file."""
    print(HEAD.format(python=".".join(map(str, sys.version_info[:3]))), end="")
    project = tomllib.loads(PROJECT.read_text())["project"]
    groups = project["dependencies"], *project["optional-dependencies"].values()
    seen: dict[tuple[str, str], None] = {("torch-dent", ""): None}
    found = {
        line for group in groups for text in group for line in closure(Requirement(text), seen)
    }
    print("\n".join(sorted(found)))


if __name__ == "__main__":
    main()
