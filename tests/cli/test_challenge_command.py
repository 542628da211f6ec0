"""Test `dent challenge`, and run the commands and code of the documentation page about it."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from dent import evaluation
from dent.evaluation import Settings, Subject, evaluate, load_run, restoration
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
    """A run in the working folder; `restore` is patched to return its subject."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(evaluation, "restore", lambda *_, **__: subject())
    evaluate(subject(), Settings(n=12, batch_size=4), out=Path("runs/first"))
    return Path("runs/first")


def make_images() -> None:
    """Attack the samples with `Push` and write the images to broken.safetensors."""
    made = subject()
    x, y = made.dataset.batch(list(range(12)))
    images = Push()(made.model, x, y, threat=made.threat, seed=0).adversarial
    save_file({"adversarial": images}, "broken.safetensors")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    assert all(line.startswith("dent ") for line in lines)
    return [[word.strip('"') for word in re.findall(r'"[^"]*"|\S+', line)[1:]] for line in lines]


@pytest.mark.slow
def test_commands_and_code_of_the_challenge_page_run_as_documented(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    by_exact_gradient, from_python = blocks("python")
    first, show, verify, run, theirs = commands()
    told = dent(*run)
    assert told.code == 0, told.err
    names: dict[str, Any] = {}
    exec(by_exact_gradient, names)  # noqa: S102
    Path("theirs.py").write_text(ATTACK)
    monkeypatch.delitem(sys.modules, "theirs", raising=False)
    told = dent(*first)
    assert told.code == 0, told.err
    assert "dent+: Lowered by Ada Lovelace (" in told.out
    assert "https://example.org/broken): " in told.out
    shown = dent(*show)
    assert "dent+: Lowered by Ada Lovelace (" in shown.out
    assert "challenge by Ada Lovelace" in shown.out
    assert "The run's own attacks include no exact-gradient attack" in shown.out
    told = dent(*theirs)
    assert told.code == 0, told.err
    assert "Grace Hopper" in told.out
    assert [entry.attack for entry in load_run("runs/first").challenges] == [None, "theirs:strong"]
    checked = dent(*verify)
    assert "records verified, attacks not re-run" in checked.out
    assert re.search(r"challenges\W+passed\W+2", checked.out)
    exec(from_python, names)  # noqa: S102
    found = names["challenged"]
    assert found.new is False
    assert found.summaries["dent+"].lowered > 0
    assert "Ada Lovelace" in [each.by for each in found.result.defenses["dent+"].broken_by]


def test_dry_run_reports_the_same_result_and_writes_nothing(run: Path) -> None:
    make_images()
    before = contents()
    options = ("challenge", str(run), "--images", "broken.safetensors", "--by", "Ada")
    dry = dent(*options, "--dry-run")
    assert (dry.code, contents()) == (0, before), dry.err
    plain = json.loads(dent(*options, "--dry-run", "--json").out)
    assert (plain["dry_run"], plain["new"], contents()) == (True, True, before)
    told = dent(*options)
    assert dry.out == f"Dry run: nothing was written. A challenge would record:\n{told.out}"
    lowered = plain["defenses"]["mine"]["challenge"]["lowered"]
    assert re.search(
        rf"mine: Lowered by Ada \(.* the worst case fell by {lowered} sample", told.out
    )
    assert (run / CHALLENGES).exists()


def test_challenge_with_an_attack_prints_its_cost_and_progress(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("theirs.py").write_text(ATTACK)
    monkeypatch.delitem(sys.modules, "theirs", raising=False)
    told = dent(
        "challenge", str(run), "--attack", "theirs:strong", "--allow-code", "--by", "Grace Hopper"
    )
    assert "by Grace Hopper" in told.out
    assert re.match(
        r"This attack takes about \d.* early\. A challenge cannot be resumed: if it stops, nothing "
        r"is recorded\.\n",
        told.err,
    )
    attacked = re.findall(r"batch (\d) of 3 attack theirs:strong · mine", told.err)
    submitted = re.findall(r"batch (\d) of 3 challenge \w+ · mine", told.err)
    assert (attacked, submitted) == (["1", "2", "3"],) * 2


def test_interrupted_challenge_reports_that_nothing_was_recorded(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluation, "challenge", stop)
    stopped = dent("challenge", str(run), "--attack", "pgd:iterations=1", "--by", "Ada")
    assert "Stopped. Nothing was recorded." in stopped.err
    assert stopped.code == 130


def contents() -> dict[str, bytes]:
    """Map each file below runs/ to its bytes."""
    return {str(path): path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()}


def test_every_output_format_names_the_challenger_and_escapes_the_name(run: Path) -> None:
    make_images()
    name = "<b>Ada</b> [red]"
    told = dent("challenge", str(run), "--images", "broken.safetensors", "--by", name, "--json")
    plain = json.loads(told.out)
    assert (plain["run"], plain["new"], plain["by"]) == (str(run), True, name)
    assert plain["dry_run"] is False
    entry = plain["defenses"]["mine"]["challenge"]
    assert entry["lowered"] > 0
    assert plain["defenses"]["mine"]["worst"]["served"]["total"] == entry["total"] == 12
    for written in ("page.html", "page.md"):
        write_report([run], Path(written))
    page, text = Path("page.html").read_text(), Path("page.md").read_text()
    assert "Lowered by &lt;b&gt;Ada&lt;/b&gt; [red]" in page
    assert "challenge by &lt;b&gt;Ada" in page
    assert "<b>Ada" not in page
    assert "Lowered by" in text
    assert "<b>Ada" not in text
    (line,) = list_runs(Path("runs"))
    assert [each.broken_by for each in line.defenses] == [(), (name,)]
    assert f"lowered by: {name}" in dent("list", "runs").out
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
        (
            ("--attack", "theirs:strong"),
            "theirs:strong is code that would be run to make the images. If you trust it, add --",
        ),
        (("--images", "x.npy", "--defense", "dent+"), "expected one of static, mine"),
        (("--images", "x.npy"), "x.npy is missing"),
        (("--attack", "standard:protocol=published"), "expected one that attacks whole batches"),
    ],
)
def test_invalid_challenge_arguments_are_refused(
    options: tuple[str, ...], says: str, run: Path
) -> None:
    refused = dent("challenge", str(run), *options, "--by", "Ada")
    assert (refused.code, refused.out) == (2, "")
    assert says in refused.err
    assert not (run / CHALLENGES).exists()


def test_code_named_by_a_run_is_refused_without_allow_code(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "restore", restoration.restore)
    monkeypatch.setattr(restoration, "named_code", lambda _: ("their.model:make",))
    refused = dent("challenge", str(run), "--images", "x.npy", "--by", "Ada")
    assert refused.code == 2
    assert "their.model:make. If you trust that code, add --allow-code" in refused.err
