"""Ask pip-audit for known vulnerabilities of what is installed, and say what it could not ask.

    python tools/audit.py [--require]

pip-audit ends with status 0 and "No known vulnerabilities found" where its advisory service knows
none of the packages, or cannot be reached at all. So what counts here is its report: how many
packages were looked up. Status 1: a package that pyproject.toml names has a known vulnerability;
or, with --require, one could not be looked up. Else status 0, and what was not checked is said.
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
    """Return a package's name as indexes compare it."""
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
    """Return what to say of pip-audit's list of packages, and the exit status.

    Args:
        packages: with `name`, and either `version` and `vulns` or `skip_reason`.
        named: packages whose vulnerabilities fail, by normal name.
        require: fail as well where one of `named` was not looked up.
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
    """Run pip-audit and judge its report."""
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
