"""`dent challenge`, and the page about it: its commands run, and say what the page says."""

import json
import re
import sys
from pathlib import Path

import pytest
from torch import Tensor

from dent.cli import restore
from dent.evaluation import Settings, Subject, evaluate, load_run
from dent.evaluation.records.journal import CHALLENGES
from dent.report import list_runs, sample_story, write_report
from tests.cli.here import dent
from tests.evaluation.subjects import Push, Wrapper, make_model, make_subject

PAGE = Path(__file__).parents[2] / "docs" / "evaluation" / "challenge.md"
ATTACK = """
from tests.evaluation.subjects import Push

def strong():
    return Push(0.9)
"""


def subject() -> Subject:
    model = make_model()
    return make_subject({"mine": Wrapper(model)}, [Push(0.02)], model=model)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run in the working folder, which is restored without being asked what it was."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(restore, "subject", lambda *_: subject())
    evaluate(subject(), Settings(n=12, batch_size=4), out=Path("runs/first"))
    return Path("runs/first")


def my_attack(x: Tensor, y: Tensor) -> Tensor:
    made = subject()
    return Push()(made.model, x, y, threat=made.threat, seed=0).adversarial


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    assert all(line.startswith("dent ") for line in lines)
    return [[word.strip('"') for word in re.findall(r'"[^"]*"|\S+', line)[1:]] for line in lines]


def test_the_page_runs_and_says_what_comes(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_images, from_python = blocks("python")
    names = {"dataset": subject().dataset, "my_attack": my_attack, "subject": subject()}
    exec(make_images, names)  # noqa: S102
    Path("theirs.py").write_text(ATTACK)
    monkeypatch.delitem(sys.modules, "theirs", raising=False)
    first, show, verify, theirs = commands()
    told = dent(*first)
    assert told.code == 0, told.err
    assert "mine: Broken by Ada Lovelace (" in told.out
    assert "https://example.org/broken): " in told.out
    shown = dent(*show)
    assert "mine: Broken by Ada Lovelace (" in shown.out
    assert "challenge by Ada Lovelace" in shown.out
    assert "records verified, attacks not re-run" in dent(*verify).out
    told = dent(*theirs)
    assert told.code == 0, told.err
    assert "Grace Hopper" in told.out
    assert [entry.attack for entry in load_run(run).challenges] == [None, "theirs:strong"]
    assert dent(*verify).code == 0
    exec(from_python, names)  # noqa: S102
    assert names["found"].new is False  # type: ignore[attr-defined]


def test_every_format_names_who_broke_it(run: Path) -> None:
    names = {"dataset": subject().dataset, "my_attack": my_attack}
    exec(blocks("python")[0], names)  # noqa: S102
    name = "<b>Ada</b> [red]"
    told = dent("challenge", str(run), "--images", "broken.safetensors", "--by", name, "--json")
    plain = json.loads(told.out)
    assert (plain["run"], plain["new"], plain["by"]) == (str(run), True, name)
    entry = plain["defenses"]["mine"]["challenge"]
    assert entry["lowered"] > 0
    assert plain["defenses"]["mine"]["worst"]["served"]["total"] == entry["total"] == 12
    for written in ("page.html", "page.md"):
        write_report([run], Path(written))
    page, text = Path("page.html").read_text(), Path("page.md").read_text()
    assert "Broken by &lt;b&gt;Ada&lt;/b&gt; [red]" in page
    assert "challenge by &lt;b&gt;Ada" in page
    assert "<b>Ada" not in page
    assert "Broken by" in text
    assert "<b>Ada" not in text
    (line,) = list_runs(Path("runs"))
    assert [each.broken_by for each in line.defenses] == [(), (name,)]
    assert f"broken by: {name}" in dent("list", "runs").out
    fallen = next(
        unit.served.index(None) if None in unit.served else 0
        for unit in load_run(run).units()
        if unit.kind == "challenge"
    )
    story = sample_story(load_run(run), 100 + fallen)
    assert story.defenses[1].answers[-1].by == name
    assert f"challenge by {name}" in dent("show", str(run), "--sample", str(100 + fallen)).out
    again = dent("challenge", str(run), "--images", "broken.safetensors", "--by", "Bob")
    assert "there already, by <b>Ada</b> [red]" in again.out


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((), "either --images FILE or --attack ATTACK"),
        (("--images", "x.npy", "--attack", "pgd"), "either --images FILE or --attack ATTACK"),
        (("--attack", "theirs:strong"), "--attack theirs:strong is code"),
        (("--images", "x.npy", "--defense", "dent+"), "expected one of static, mine"),
        (("--images", "x.npy"), "x.npy is missing"),
        (("--attack", "standard:protocol=published"), "expected one that attacks whole batches"),
    ],
)
def test_what_cannot_be_a_challenge_is_refused(
    options: tuple[str, ...], says: str, run: Path
) -> None:
    refused = dent("challenge", str(run), *options, "--by", "Ada")
    assert (refused.code, refused.out) == (2, "")
    assert says in refused.err
    assert not (run / CHALLENGES).exists()


def test_code_that_the_run_names_is_not_run_unasked(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restore, "named_code", lambda _: ("their.model:make",))
    refused = dent("challenge", str(run), "--images", "x.npy", "--by", "Ada")
    assert refused.code == 2
    assert "their.model:make" in refused.err
