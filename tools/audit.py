"""Check the installed packages for known vulnerabilities, and report what was not checked.

    python tools/audit.py [--require]

pip-audit exits with status 0 and "No known vulnerabilities found" even if its advisory service
knows none of the packages or cannot be reached. So this script counts the packages in its report
that were looked up. Exit status 1: a package that pyproject.toml names has a known vulnerability,
or, with --require, could not be looked up. Otherwise the status is 0, and the output says what was
not checked.
"""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parents[1] / "pyproject.toml"


def normal(name: str) -> str:
    """Return a package's name in the normal form that package indexes compare."""
    return re.sub(r"[-_.]+", "-", name).lower()


def direct() -> set[str]:
    """Return the packages that pyproject.toml names, extras included."""
    project = tomllib.loads(PROJECT.read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    named = {re.split(r"[\[<>=!~; ]", each)[0] for group in groups for each in group}
    return {normal(name) for name in named} - {normal(project["name"])}


def judge(
    packages: list[dict[str, Any]], named: set[str], *, require: bool
) -> tuple[list[str], int]:
    """Return the lines to print about pip-audit's list of packages, and the exit status.

    Args:
        packages: mappings with `name`, and either `version` and `vulns`, or `skip_reason`.
        named: normal names of the packages whose vulnerabilities cause a failure.
        require: whether to fail as well if one of `named`, or every package, was not looked up.
    """
    asked = [each for each in packages if "vulns" in each]
    if not asked:
        nothing = (
            "audit: NOT CHECKED. The advisory service could not be reached, or knows none of the "
            f"{len(packages)} packages here. This says nothing of vulnerabilities."
        )
        return [nothing], int(require)
    lines, failed = [], False
    for each in asked:
        for found in each["vulns"]:
            counts = normal(each["name"]) in named
            failed |= counts
            fixed = ", ".join(found.get("fix_versions", [])) or "no version"
            lines.append(
                f"audit: {each['name']} {each['version']} has {found['id']}, fixed in {fixed}"
                f"{'' if counts else ' (indirect: reported, does not fail)'}"
            )
    skipped = sorted(normal(each["name"]) for each in packages if "vulns" not in each)
    if unknown := [name for name in skipped if name in named]:
        lines.append(f"audit: not checked, of those that we name: {', '.join(unknown)}")
    lines.append(f"audit: {len(asked)} of {len(packages)} packages were looked up")
    return lines, int(failed or (require and bool(unknown)))


def main(arguments: list[str]) -> int:
    """Run pip-audit, print the judgment of its report, and return the exit status."""
    command = [sys.executable, "-m", "pip_audit", "--format", "json", "--progress-spinner", "off"]
    command += ["--skip-editable", "--timeout", "10"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        packages = []
        print(done.stderr.strip()[-500:] or "pip-audit printed no report", file=sys.stderr)
    packages = [each for each in packages if normal(each["name"]) != "torch-dent"]
    lines, status = judge(packages, direct(), require="--require" in arguments)
    print("\n".join(lines))
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
