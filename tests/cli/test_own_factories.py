"""Test user-defined attacks and datasets (`module:factory`) in evaluate and verify."""

import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dent import names
from dent.data import from_factory
from dent.errors import DataError, UnknownNameError
from dent.evaluation import load_run
from tests.cli.here import dent

MINE = """
from dataclasses import dataclass
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from dent.attacks import PGD, Attack, Outcome
from dent.data import ArrayDataset, ImageDataset
from dent.defenses import ReferenceDefense


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 6 * 6, 3)).eval()


@dataclass(frozen=True)
class Step(Attack):
    size: float = 1.0

    def run(self, target, threat, seed):
        with torch.enable_grad():
            leaf = target.natural.clone().requires_grad_()
            loss = F.cross_entropy(target(leaf), target.labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, leaf)
        moved = target.natural + self.size * threat.eps * gradient.sign()
        images = threat.project(moved, target.natural)
        return Outcome(images, target(images).argmax(dim=1) != target.labels)


class Beyond(Step):
    def run(self, target, threat, seed):
        found = super().run(target, threat, seed)
        return Outcome(target.natural + 2 * threat.eps, found.fooled)


class Unsure(Step):
    def run(self, target, threat, seed):
        return Outcome(target.natural, target(target.natural).softmax(dim=1).amax(dim=1))

    def queries(self, num_classes, norm="linf"):
        from dent.attacks import Queries

        return Queries(1, 0)


def step():
    return Step(size=0.5)


def known():
    return PGD(iterations=2)


def pixels():
    draw = np.random.default_rng(0)
    return draw.integers(0, 256, (9, 6, 6, 3), dtype=np.uint8), draw.integers(0, 3, 9)


def arrays():
    return ArrayDataset("mine", "test", ("a", "b", "c"), *pixels())


class Reading(ImageDataset):
    name, split, digest = "any", "test", "of its own choice"
    classes, sample_ids = ("a", "b", "c"), tuple(range(9))
    scale = 255

    def __len__(self):
        return 9

    def batch(self, indices):
        images, labels = pixels()
        at = list(indices)
        found = torch.from_numpy(images[at]).permute(0, 3, 1, 2).float() / self.scale
        return found.contiguous(), torch.from_numpy(labels[at])


class Bright(Reading):
    scale = 100


class Unlabelled(Reading):
    def batch(self, indices):
        return super().batch(indices)[0], None


class Strange(Reading):
    classes = ("a",)


class Nameless(ReferenceDefense):
    batch_dependent, settings = False, {}

    def adapt(self, x, *, differentiable=False):
        return None

    def predict(self, x, adaptation):
        return self.classifier(x)


class WithoutGradient(Nameless):
    name = "without-gradient"

    def adapt(self, x, *, differentiable=False):
        change = torch.zeros_like(x, requires_grad=True)
        return torch.autograd.grad(self.classifier(x + change).sum(), change)


class Single(Reading):
    def batch(self, indices):
        return super().batch(indices)[0]


class Burning(Reading):
    def batch(self, indices):
        raise OSError("disk on fire")
"""
EVALUATE = ("evaluate", "--model", "own_things:small", "--device", "cpu", "--defense", "static")
EVALUATE += ("--n", "6", "--batch-size", "4", "--eps", "0.1", "--json")


@pytest.fixture(autouse=True)
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Write the module `own_things` to the current folder."""
    path = tmp_path / "own_things.py"
    path.write_text(MINE)
    monkeypatch.chdir(tmp_path)
    yield path
    sys.modules.pop("own_things", None)


def changed(mine: Path, *, old: str, new: str) -> None:
    """Edit the module and drop its cached copies, as if a new process imported it."""
    assert old in mine.read_text()
    mine.write_text(mine.read_text().replace(old, new))
    shutil.rmtree(mine.parent / "__pycache__", ignore_errors=True)
    sys.modules.pop("own_things", None)


def run(*more: str) -> None:
    ran = dent(*EVALUATE, "--out", "run", *more)
    assert ran.code == 0, ran.err


def test_own_attacks_and_datasets_are_recorded_resumed_and_verified() -> None:
    asked = ("--dataset", "own_things:arrays", "--attack", "own_things:step", "--attack")
    asked += ("own_things:known",)
    run(*asked)
    spec = load_run(Path("run")).run.spec
    assert (spec.dataset.name, spec.dataset.size) == ("own_things:arrays", 9)
    step, known = spec.attacks
    assert (step.name, step.attack, step.kind) == ("own_things:step", None, "own_things.Step")
    assert step.settings == {"size": 0.5}
    assert (known.name, known.attack) == ("own_things:known", "pgd")
    journal = Path("run/journal.jsonl").read_bytes()
    run(*asked)  # the same command resumes the same run
    assert Path("run/journal.jsonl").read_bytes() == journal
    refused = dent("verify", "run")
    assert refused.code == 2
    assert "own_things:arrays, own_things:step" in refused.err
    assert "own_things:known" not in refused.err  # rebuilt from its record
    verified = dent("verify", "run", "--allow-code", "--reattack", "all", "--json")
    assert (verified.code, json.loads(verified.out)["status"]) == (0, "verified"), verified.out


def test_show_and_report_do_not_run_code_named_by_the_run(mine: Path) -> None:
    run("--dataset", "own_things:arrays", "--attack", "own_things:step")
    mine.write_text("raise SystemExit('this ran')")
    sys.modules.pop("own_things")
    assert dent("show", "run").code == 0
    ran = dent("report", "run", "--out", "page.html")
    assert ran.code == 0, ran.err
    assert "own_things:step" in Path("page.html").read_text()


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("Step(size=0.5)", "Step(size=0.25)", "own_things:step"),
        ("default_rng(0)", "default_rng(1)", "dataset.digest"),
    ],
)
def test_resume_and_verify_detect_a_factory_that_changed(
    mine: Path, old: str, new: str, says: str
) -> None:
    asked = ("--dataset", "own_things:arrays", "--attack", "own_things:step")
    run(*asked)
    changed(mine, old=old, new=new)
    resumed = dent(*EVALUATE, "--out", "run", *asked)
    assert resumed.code == 2
    assert says in resumed.err
    verified = dent("verify", "run", "--allow-code")
    assert verified.code in (1, 2)
    assert says in verified.out + verified.err


@pytest.mark.parametrize(
    ("attack", "says"),
    [
        ("own_things:Beyond", "own_things:Beyond left the threat model linf 0.01"),
        ("own_things:Unsure", "must say who was fooled as bool (4,), got float32 (4,)"),
        ("own_things:small", "must return an attack (dent.attacks.Attack), got torch.nn"),
        ("own_things:stepp", "has no 'stepp'. Did you mean 'step'?"),
        ("own_thing:step", "no module named 'own_thing'"),
        ("pdg:iterations=3", "Did you mean 'pgd'"),
    ],
)
def test_invalid_attacks_are_refused_with_a_helpful_message(attack: str, says: str) -> None:
    ran = dent(*EVALUATE, "--dataset", "own_things:arrays", "--attack", attack, "--out", "run")
    assert ran.code == 2
    assert says in ran.err
    assert "Traceback" not in ran.err


def test_options_for_named_attacks_and_datasets_are_refused_for_factories() -> None:
    own = ("--dataset", "own_things:arrays", "--attack", "own_things:step", "--out", "run")
    for more in (("--iterations", "3"), ("--protocol", "published")):
        ran = dent(*EVALUATE, *own, *more)
        assert ran.code == 2
        assert "own_things:step is a factory" in ran.err
    ran = dent(*EVALUATE, *own, "--data", ".")
    assert (ran.code, "own_things:arrays is a factory" in ran.err) == (2, True)
    assert dent("data", "fetch", "own_things:arrays").code == 2


def test_custom_dataset_class_gets_the_factory_name_and_a_content_digest() -> None:
    arrays, reading = from_factory("own_things:arrays"), from_factory("own_things:Reading")
    assert (arrays.name, reading.name) == ("own_things:arrays", "own_things:Reading")
    assert len(reading.digest) == 64  # a SHA-256 of the content, not its own attribute
    assert from_factory("own_things:Reading").digest == reading.digest
    assert arrays.batch(range(9))[0].equal(reading.batch(range(9))[0])


@pytest.mark.parametrize(
    ("defense", "says"),
    [
        (
            "Nameless",
            r"dent: the defense Nameless has no name: add a line such as .name = 'nameless'",
        ),
        ("WithoutGradient", r"does not require grad .* in .with torch\.enable_grad"),
    ],
)
def test_a_defense_with_a_common_mistake_is_refused_with_the_remedy(
    defense: str, says: str
) -> None:
    ran = dent(*EVALUATE, "--defense", f"own_things:{defense}", "--dataset", "own_things:arrays")
    assert ran.code == 2
    assert re.search(says, ran.err)
    assert "Traceback" not in ran.err


@pytest.mark.parametrize(
    ("factory", "says"),
    [
        ("Bright", r"images 0 to 8: expected pixels in \[0, 1\], got 0(\.\d+)? to 2\.\d+"),
        ("Unlabelled", r"expected int64 labels \(9,\), got builtins\.NoneType"),
        ("Single", "images 0 to 8: batch must return images and labels, got torch.Tensor"),
        ("Burning", "images 0 to 8: batch raised OSError: disk on fire"),
        ("Strange", r"expected labels in 0 to 0, one of 1 class, got 0 to 2"),
        ("small", r"must return a dataset .*, got torch\.nn"),
    ],
)
def test_invalid_datasets_are_refused(factory: str, says: str) -> None:
    with pytest.raises(DataError, match=says):
        from_factory(f"own_things:{factory}")


@pytest.mark.parametrize(
    ("text", "own"),
    [
        ("mine:step", True),
        ("package.module:Class.make", True),
        ("pgd:iterations=3", False),
        ("pdg:iterations=3", False),
        ("pgd:step", False),
        ("aa:iterations", False),
        ("mine:", False),
        ("pgd", False),
    ],
)
def test_attack_factory_is_distinguished_from_an_attack_with_settings(text: str, own: bool) -> None:
    assert names.is_own_attack(text) is own
    if own:
        names.check_attack(text)
    elif not text.startswith(("pgd", "aa")):
        with pytest.raises(UnknownNameError):
            names.check_attack(text)
