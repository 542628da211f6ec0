"""Test that help, completion and errors about misspelled names do not import torch."""

import json
import os
import subprocess
import sys

_SCRIPT = """
import io, json, os, sys
from contextlib import redirect_stderr, redirect_stdout
from dent.cli import main

HEAVY = {"torch", "torchvision", "numpy", "scipy", "matplotlib", "timm"}
answers = []
for arguments, environment in json.loads(sys.argv[1]):
    sys.argv = ["dent", *arguments]
    os.environ.update(environment)
    out, status = io.StringIO(), None
    with redirect_stdout(out), redirect_stderr(out):
        try:
            main()
        except SystemExit as end:
            status = end.code
    answers.append([status, out.getvalue(), sorted(HEAVY & set(sys.modules))])
    for name in environment:
        del os.environ[name]
print(json.dumps(answers))
"""


def run(asked: list[tuple[list[str], dict[str, str]]]) -> list[tuple[int, str]]:
    """Run commands in one process that may import no heavy package, and return the results."""
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, json.dumps(asked)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "200"},
    )
    answers = json.loads(done.stdout)
    assert len(answers) == len(asked)
    for (arguments, _), (_, _, heavy) in zip(asked, answers, strict=True):
        assert not heavy, arguments
    return [(status, text) for status, text, _ in answers]


def test_help_and_misspelled_names_import_no_heavy_packages() -> None:
    asked: list[tuple[list[str], int, str]] = [
        (["--help"], 0, "evaluate"),
        (["--version"], 0, "."),
        (["evaluate", "--help"], 0, "--defense"),
        (["paper", "--help"], 0, "table14"),
        (["evaluat"], 2, "Did you mean 'evaluate'"),
        (["evaluate", "--defence", "dent"], 2, "--defense"),
        (["evaluate", "--model", "resnte18-nominal"], 2, "Did you mean 'resnet18-nominal'"),
        (["evaluate", "--dataset", "cifar-10"], 2, "Did you mean 'cifar10'"),
        (["evaluate", "--defense", "dnet"], 2, "Did you mean 'dent'"),
        (["evaluate", "--attack", "apgd"], 2, "Did you mean 'apgd-ce'"),
        (["serve", "--model", "timm/resnet5O"], 2, "timm/resnet50"),
        (["train", "--recipe", "fsat"], 2, "Did you mean 'fast'"),
        (["data", "cifar-10"], 2, "Did you mean 'cifar10'"),
        (["paper", "tabel4"], 2, "Did you mean 'table4'"),
        (["paper", "table4", "--scale", "huge"], 2, "no scale 'huge'"),
    ]
    answers = run([(arguments, {}) for arguments, _, _ in asked])
    for (arguments, status, said), answer in zip(asked, answers, strict=True):
        assert answer[0] == status, arguments
        assert said in answer[1], arguments


def test_shell_completion_offers_commands_options_and_names() -> None:
    asked = {
        "dent ev": {"evaluate"},
        "dent evaluate --sui": {"--suite"},
        "dent evaluate --model resnet18": {"resnet18-nominal"},
        "dent evaluate --model rob": {"robustbench/"},
        "dent evaluate --model torchvision/resnet5": {"torchvision/resnet50"},
        "dent evaluate --defense dent-": {"dent-nominal"},
        "dent evaluate --attack gmsa": {"gmsa-avg", "gmsa-min"},
        "dent evaluate --dataset cifar100": {"cifar100", "cifar100-c"},
        "dent serve --model resnet-14-2-n": {"resnet-14-2-nominal"},
        "dent train --recipe tr": {"trades", "trades-linf", "trades-l2"},
        "dent data cifar10-s": {"cifar10-sample"},
        "dent models --source t": {"torchvision", "timm"},
        "dent paper figure": {"figure4"},
    }
    shell = {"_DENT_COMPLETE": "complete_bash"}
    answers = run(
        [
            ([], {**shell, "COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1)})
            for line in asked
        ]
    )
    for (line, offered), (_, text) in zip(asked.items(), answers, strict=True):
        assert set(text.split()) == offered, line
