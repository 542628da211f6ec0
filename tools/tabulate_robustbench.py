"""Rewrite `tables/robustbench.json` from the installed RobustBench: names, files, accuracies.

    python tools/tabulate_robustbench.py

With this table, `dent models` can list RobustBench's models without RobustBench. The names of the
models, their files on Google Drive and their preprocessing come from its code. Architectures and
accuracies come from the leaderboard in its README, which is the description of its distribution.
"""

from __future__ import annotations

import json
import re
from importlib.metadata import distribution
from typing import Any, Final

from dent.models.robustbench_package import TABLE, import_robustbench

_THREATS: Final = ("Linf", "L2")
_SECTIONS: Final = {"CIFAR-10": "cifar10", "CIFAR-100": "cifar100", "ImageNet": "imagenet"}
_ROW: Final = re.compile(
    r"\| <sub>\*\*\d+\*\*</sub> \| <sub><sup>\*\*(?P<id>[^*]+)\*\*</sup></sub> \| .*"
    r"\| <sub>(?P<clean>[\d.]+)%</sub> \| <sub>(?P<robust>[\d.]+)%</sub> "
    r"\| <sub>(?P<architecture>[^|]+)</sub> \|"
)
_DRIVE: Final = "https://drive.google.com/uc?id="


def tabulate() -> dict[str, Any]:
    """Return the table as plain values, from the installed RobustBench."""
    zoo = import_robustbench("robustbench.model_zoo.models").model_dicts
    timm = import_robustbench("timm")
    leaderboard = _leaderboard()
    models = []
    for dataset, by_threat in zoo.items():
        for threat, entries in by_threat.items():
            if threat.value not in _THREATS:
                continue
            for name, entry in entries.items():
                key = (dataset.value, threat.value, name)
                files = _files(key, entry["gdrive_id"], timm)
                if files:
                    shown = leaderboard.get(key, {})
                    models.append(
                        {
                            "dataset": dataset.value,
                            "threat": threat.value,
                            "name": name,
                            "architecture": shown.get("architecture"),
                            "preprocessing": entry.get("preprocessing"),
                            "files": files,
                            "clean": shown.get("clean"),
                            "robust": shown.get("robust"),
                        }
                    )
    return {"version": distribution("robustbench").version, "models": models}


def _files(key: tuple[str, str, str], drive: Any, timm: Any) -> dict[str, str]:
    """Return the addresses by file name, as RobustBench's own loader names the files."""
    dataset, threat, name = key
    if isinstance(drive, list):
        return {f"{name}.pt_m{i}.pt": _DRIVE + one for i, one in enumerate(drive)}
    if drive:
        return {f"{name}.pt": _DRIVE + drive}
    registered = "_".join((name.lower().replace("-", "_"), dataset, threat.lower()))
    if timm.is_model(registered):
        url: str = timm.get_pretrained_cfg_value(registered, "url") or _url(timm, registered)
        return {url.rpartition("/")[2]: url}
    return {}  # Standard_R50, which is torchvision's ResNet-50


def _url(timm: Any, registered: str) -> str:
    """Return an address that RobustBench keeps in a separate table, in the module of the model."""
    module = import_robustbench(timm.models.model_entrypoint(registered).__module__)
    url: str = module.default_cfgs[registered]["url"]
    return url


def _leaderboard() -> dict[tuple[str, str, str], dict[str, str]]:
    rows = {}
    dataset = threat = ""
    for line in str(distribution("robustbench").metadata.json["description"]).splitlines():
        if line.startswith("### "):
            dataset = _SECTIONS.get(line[4:].strip(), "")
        elif line.startswith("#### "):
            threat = next((t for t in _THREATS if line[5:].startswith(t)), "")
        elif dataset and threat and (row := _ROW.match(line)):
            found = row.groupdict()
            found["architecture"] = re.sub(r"<[^>]+>", " ", found["architecture"]).strip()
            rows[dataset, threat, found.pop("id")] = found
    return rows


if __name__ == "__main__":
    TABLE.write_text(json.dumps(tabulate(), indent=1) + "\n")
