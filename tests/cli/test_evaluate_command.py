"""Test `dent evaluate`, and the commands that read its records, in the test process."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from dent.cli.app import main
from dent.cli.console import OUT
from dent.evaluation import load_run

MINE = """
import torch
from dent.data import load
from torch import nn

def small(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)).eval()

def other(model):
    return small(1)

def fitted():
    # Knows the bundled images by heart.
    data = load("cifar10-sample")
    x, y = data.batch(range(len(data)))
    rows = x.flatten(1) - 0.5
    wanted = 10 * nn.functional.one_hot(y, 10).float() - 1
    kernel = rows @ rows.T + 10 * torch.eye(len(rows))
    layer = nn.Linear(3072, 10)
    weight = torch.linalg.solve(kernel, wanted).T @ rows
    layer.load_state_dict({"weight": weight, "bias": -weight.sum(1) / 2})
    return nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), layer).eval()

class Bare:
    batch_dependent = False
    def __init__(self, model): self.model = model
    def adapt(self, x): return None
    def predict(self, x, adaptation): return self.model(x)

class InPlace(Bare):
    batch_dependent = True
    def adapt(self, x):
        with torch.no_grad():
            next(self.model.parameters()).mul_(1.01)
"""


class Ran(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Ran]


@pytest.fixture
def dent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    (tmp_path / "own_evaluated.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(OUT, "width", 220)  # COLUMNS is read only when a console is made

    def run(*arguments: str) -> Ran:
        monkeypatch.setattr("sys.argv", ["dent", *arguments])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        return Ran(code, *capsys.readouterr())

    return run


EVALUATE = ("evaluate", "--model", "own_evaluated:small", "--device", "cpu", "--iterations", "1")


def test_run_with_defenses_and_attacks_given_by_name_can_be_verified(dent: Run) -> None:
    (Path.cwd() / "own.json").write_text('{"steps": 1}')
    ran = dent(
        *EVALUATE,
        *("--n", "6", "--batch-size", "4", "--out", "run"),
        *("--defense", "static", "--defense", "own_evaluated:other", "--defense", "own.json"),
        *("--defense", "own_evaluated:Bare", "--attack", "pgd:iterations=2,step=0.5,restarts=2"),
        *("--attack", "apgd-ce:protocol=published"),
    )
    assert ran.code == 0, ran.err
    spec = load_run(Path("run")).run.spec
    # An explicit static defense is the static model, which every run includes anyway.
    assert spec.defenses[0].kind.startswith("torch.nn")
    pgd, published = spec.attacks
    assert pgd.settings["iterations"] == 2
    assert (published.protocol, published.settings["batch_size"]) == ("published", 4)
    verified = dent("verify", "run", "--allow-code", "--json")
    assert verified.code == 0, verified.out
    assert json.loads(verified.out)["status"] == "verified"


def test_flags_mark_the_headline_numbers_and_appear_in_show_and_list(dent: Run) -> None:
    asked = (*EVALUATE, "--n", "6", "--batch-size", "4", "--defense", "own_evaluated:InPlace")
    table = dent(*asked, "--out", "run").out
    flagged = [row for row in table.splitlines() if "(a,b)" in row]
    for row, title in zip(flagged, ("defense", "worst case", "against static"), strict=True):
        assert title in row
    assert "(a) own_evaluated:InPlace: Earlier queries change the predictions" in table
    assert "(b) the run: The last batch is smaller" in table
    assert "upper bound" in table
    assert dent("show", "run").out == table
    listed = dent("list", ".").out
    assert "flags: carries state, uneven batches" in listed
    assert (
        "run  complete 14/14, own_evaluated:small, 6 images of cifar10-sample, linf 8/255" in listed
    )
    result = json.loads(dent("list", ".", "--json").out)
    assert result[0]["defenses"][1]["flags"] == ["carries state", "uneven batches"]


def test_several_mix_shares_run_as_a_sweep_and_report_clean_members(dent: Run) -> None:
    asked = (*EVALUATE, "--n", "2", "--batch-size", "4", "--defense", "dent+", "--out", "mixed")
    ran = dent(*asked, "--mix", "0.25,0.5")
    assert ran.code == 0, ran.err
    assert "These 2 runs take about " in ran.err
    assert " / " in ran.out  # attacked members / clean members
    assert "clean members" in ran.out
    for folder, company in (("mix=0.25", 6), ("mix=0.5", 2)):
        found = load_run(Path("mixed") / folder).result.defenses["dent+"]
        assert (found.natural.total, found.bystanders.total) == (2, company)
        assert found.attack("apgd-ce").bystanders.total == company
    again = dent(*asked, "--mix", "0.25,0.5", "--json")
    assert "take about" not in again.err  # nothing will run, so no cost is printed
    assert set(json.loads(again.out)) == {"0.25", "0.5"}
    both = dent(*asked, "--mix", "0.25,0.5", "--sweep", "n=1,2")
    assert (both.code, "both make several runs" in both.err) == (2, True)
    assert dent(*asked, "--mix", "half").code == 2


@pytest.mark.parametrize(
    ("sweep", "option", "value"),
    [
        ("eps=1/255,2/255", "--eps", "4/255"),
        ("batch-size=1,2", "--batch-size", "128"),  # also if it is the default
        ("seed=1,2", "--seed", "0"),
        ("n=1,2", "--n", "4"),
        ("n=1,2", "--ids", "0-3"),
        ("order=dataset,shuffled", "--order", "by-class"),
        ("mix=0.25,0.5", "--mix", "0.5"),
    ],
)
def test_a_sweep_and_an_option_for_the_same_setting_are_refused(
    dent: Run, sweep: str, option: str, value: str
) -> None:
    both = dent(*EVALUATE, "--sweep", sweep, option, value, "--out", "both")
    assert both.code == 2
    assert f"--sweep {sweep} and {option} {value} both " in both.err
    assert not Path("both").exists()


def test_cost_is_printed_before_a_run_but_not_before_a_refusal(dent: Run) -> None:
    asked = (*EVALUATE, "--n", "4", "--batch-size", "4", "--defense", "dent+", "--out", "run")
    first = dent(*asked)
    assert first.err.index("takes about") < first.err.index("probe")
    # For an incomplete run or a shard, the estimate is of the units that are left.
    part = dent(*asked[:-1], "part", "--shard", "1/2")
    assert "for 7 units" in part.err
    rest = dent(*asked[:-1], "rest", "--static-from", "run")
    assert "for the 5 of 8 units that are left" in rest.err
    journal = Path("run/journal.jsonl")
    journal.write_text("".join(journal.read_text().splitlines(keepends=True)[:3]))
    said = dent(*asked).err
    assert "for the 5 of 8 units that are left" in said
    assert re.search(r"if no attack stops early \(timed on \d+ images?\)\.", said)
    other = dent(*asked, "--seed", "1")
    assert other.code == 2
    assert "settings.seed" in other.err
    assert "takes about" not in other.err


def test_verify_runs_code_named_by_a_record_only_with_allow_code(dent: Run) -> None:
    dent(
        *EVALUATE,
        "--n",
        "2",
        "--batch-size",
        "2",
        "--defense",
        "own_evaluated:Bare",
        "--out",
        "run",
    )
    Path("own_evaluated.py").unlink()  # an attempt to import it would fail
    sys.modules.pop("own_evaluated")
    refused = dent("verify", "run")
    assert (refused.code, refused.out) == (2, "")
    assert "own_evaluated:small, own_evaluated:Bare. If you trust that code" in refused.err
    assert "add --allow-code" in refused.err
    assert dent("verify", "run", "--records-only").code == 3
    trusted = dent("verify", "run", "--allow-code")
    assert trusted.code == 2
    assert "no module named 'own_evaluated'" in trusted.err


def test_verify_exits_with_1_for_damaged_records_and_2_for_a_missing_run(dent: Run) -> None:
    asked = (*EVALUATE, "--n", "2", "--batch-size", "2", "--defense", "dent+")
    dent(*asked, "--out", "run")
    assert dent("verify", "run", "--allow-code").code == 0
    tensor = sorted(Path("run/adversarial").iterdir())[0]
    content = bytearray(tensor.read_bytes())
    content[-1] ^= 1
    tensor.write_bytes(bytes(content))
    assert dent("verify", "run", "--allow-code").code == 1
    journal = Path("run/journal.jsonl")
    journal.write_text(journal.read_text().replace("[", "[ ", 1).replace("0", "1", 1))
    found = dent("verify", "run", "--allow-code", "--json")
    assert found.code == 1
    (check,) = json.loads(found.out)["checks"]
    assert (check["name"], check["state"]) == ("records", "failed")
    nothing = dent("verify", "nowhere")
    assert (nothing.code, nothing.out) == (2, "")
    dent(*asked, "--sweep", "seed=1,2", "--out", "swept")
    several = dent("verify", "swept")
    assert several.code == 2
    assert "It is a sweep; its runs are swept/seed=1, swept/seed=2" in several.err


def test_report_json_names_the_written_file_and_its_runs(dent: Run) -> None:
    dent(*EVALUATE, "--n", "2", "--batch-size", "2", "--defense", "dent+", "--out", "run")
    told = json.loads(dent("report", "run", "-o", "pages/it.md", "--json").out)
    assert told == {"written": "pages/it.md", "runs": ["run"]}
    assert Path("pages/it.md").is_file()


def test_config_file_with_the_name_of_a_preset_is_refused(dent: Run) -> None:
    (Path.cwd() / "dent+.json").write_text('{"steps": 1}')
    refused = dent(*EVALUATE, "--defense", "dent+.json", "--out", "run")
    assert refused.code == 2
    assert "rename the file" in refused.err


@pytest.mark.parametrize(
    "more",
    [
        ("--attack", "pgd"),
        ("--iterations", "3"),
        ("--protocol", "published"),
        ("--no-static",),
    ],
)
def test_suite_refuses_attack_options_and_budget_requires_a_suite(
    dent: Run, more: tuple[str, ...]
) -> None:
    suite = ("evaluate", "--model", "own_evaluated:small", "--suite", "dynamic")
    ran = dent(*suite, *more, "--out", "run")
    assert ran.code == 2
    assert f"leave out {' '.join(more[:2]) if 'published' in more else more[0]}," in ran.err
    assert not Path("run").exists()
    alone = dent("evaluate", "--model", "own_evaluated:small", "--budget", "full")
    assert (alone.code, "add --suite dynamic" in alone.err) == (2, True)


def test_suite_verdict_is_in_every_output_and_verify_detects_changed_images(dent: Run) -> None:
    (Path.cwd() / "own.json").write_text('{"steps": 1}')
    asked = (
        *("evaluate", "--model", "own_evaluated:fitted", "--device", "cpu", "--out", "run"),
        *("--suite", "dynamic", "--budget", "small", "--defense", "own.json"),
        *("--n", "2", "--batch-size", "2"),
    )
    ran = dent(*asked)
    assert ran.code == 0, ran.err
    loaded = load_run(Path("run"))
    static, found = (loaded.result.defenses[name] for name in ("static", "own"))
    assert static.natural.correct == 2
    assert static.worst.served.correct < 2
    assert found.verdict is not None
    assert found.verdict.ruling == "inconclusive"
    sentence = found.verdict.sentence
    assert "under the dynamic suite (small)" in sentence
    assert "2 samples cannot show any gain" in sentence
    assert sentence in " ".join(ran.out.split())
    told = json.loads(dent("show", "run", "--json").out)["defenses"]["own"]["verdict"]
    assert (told["ruling"], told["budget"], told["sentence"]) == ("inconclusive", "small", sentence)
    assert dent("report", "run", "-o", "run.html").code == 0
    assert sentence in Path("run.html").read_text()
    verified = dent("verify", "run", "--allow-code", "--json")
    assert verified.code == 0, verified.out
    checks = {check["name"]: check for check in json.loads(verified.out)["checks"]}
    assert checks["probes"]["looked_at"] == 2
    tensors = [getattr(record, "tensor", None) for record in loaded.records.values()]
    tensor = next(tensor for tensor in tensors if tensor is not None)
    file = Path("run") / tensor.file
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    tampered = dent("verify", "run", "--allow-code", "--json")
    assert tampered.code == 1
    checks = {check["name"]: check for check in json.loads(tampered.out)["checks"]}
    assert checks["tensors"]["state"] == "failed"
    assert "SHA-256" in " ".join(checks["tensors"]["problems"])


def test_aliases_of_norms_and_autoattack_are_accepted(dent: Run) -> None:
    small = ("--n", "2", "--batch-size", "2", "--defense", "static")
    ran = dent(
        *EVALUATE, *small, "--norm", "L2",
        *("--attack", "AA:square_iterations=1,targets=1", "--out", "run"),
    )  # fmt: skip
    assert ran.code == 0, ran.err
    spec = load_run(Path("run")).run.spec
    assert (spec.threat.norm, spec.threat.eps) == ("l2", "0.5")
    assert [attack.name for attack in spec.attacks] == ["standard:square_iterations=1,targets=1"]


@pytest.mark.parametrize(("norm", "eps"), [("l2", "128"), ("Linf", "8"), ("l1", "8000")])
def test_eps_on_the_0_to_255_scale_is_refused_before_anything_runs(
    dent: Run, norm: str, eps: str
) -> None:
    ran = dent(*EVALUATE, "--n", "2", "--norm", norm, "--eps", eps, "--attack", "pgd")
    assert ran.code == 2
    assert f"did you mean '{eps}/255'?" in ran.err
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--n", "8", "--ids", "0-5"), "--n and --ids both choose the samples: give one"),
        (("--mix", "2"), "--mix expected a share above 0, up to 1, such as 0.25, got '2'"),
        (("--mix", "0.5,2"), "--mix expected a share above 0, up to 1, such as 0.25, got '2'"),
        (("--dataset", "x.npz"), "or package.module:factory for your own (docs/data.md)"),
    ],
)
def test_error_messages_name_the_command_line_options(
    dent: Run, options: tuple[str, ...], says: str
) -> None:
    ran = dent("evaluate", "--model", "resnet-14-2-linf", *options)
    assert ran.code == 2
    assert says in " ".join(ran.err.split())
    assert not Path("runs").exists()
