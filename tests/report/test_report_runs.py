"""Loading and listing of runs, sample stories, and the commands that repeat a run."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dent import Dent, Performance, ThreatModel
from dent.cli.output.runs import show_sample
from dent.errors import ConfigError
from dent.evaluation import (
    EvaluationResult,
    RecordedRun,
    RecordError,
    SchemaVersionError,
    Settings,
    Subject,
    evaluate,
    suite,
)
from dent.evaluation.attack_specs import attack_spec
from dent.evaluation.results.result import Diagnostic
from dent.evaluation.subject import threat_of
from dent.evaluation.suite_attacks import SuiteName
from dent.report import list_runs, load_run, sample_story, write_report
from dent.report.commands import commands
from dent.report.flags import of_one
from dent.report.html import to_html
from dent.report.loading import NamedRun, load_runs
from dent.report.series import differing, find_series
from tests.report.conftest import small

ROOT = Path(__file__).parents[2]


def test_load_run_returns_the_result_that_evaluate_wrote(
    run_path: Path, result: EvaluationResult
) -> None:
    loaded = load_run(run_path)
    assert loaded.result == result
    assert loaded.run.spec == result.spec
    assert len(loaded.records) == result.units_done


def test_write_report_is_deterministic_and_does_not_change_the_run(
    run_path: Path, tmp_path: Path
) -> None:
    before = {p: p.read_bytes() for p in sorted(run_path.rglob("*")) if p.is_file()}
    first = write_report([run_path], tmp_path / "new" / "a.html").read_bytes()
    second = write_report([run_path], tmp_path / "b.html").read_bytes()
    assert first == second, "equal records give an equal page"
    assert {p: p.read_bytes() for p in sorted(run_path.rglob("*")) if p.is_file()} == before


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("missing", "does not exist"),
        ("empty", "has no run.json"),
        ("file", "a run is a folder"),
        ("above", "There are runs inside it: first"),
    ],
)
def test_paths_that_are_not_runs_are_refused(
    name: str, said: str, run_path: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("{}")
    path = run_path.parent if name == "above" else tmp_path / name
    with pytest.raises(RecordError, match=said) as caught:
        load_run(path)
    assert str(path) in str(caught.value)
    with pytest.raises(RecordError, match=said):
        write_report([path], tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_newer_schema_and_damaged_journal_are_refused(run_path: Path, tmp_path: Path) -> None:
    newer = tmp_path / "newer"
    shutil.copytree(run_path, newer)
    plain = json.loads((newer / "run.json").read_text())
    (newer / "run.json").write_text(json.dumps(plain | {"schema_version": 99}))
    with pytest.raises(SchemaVersionError, match="upgrade torch-dent"):
        load_run(newer)
    damaged = tmp_path / "damaged"
    shutil.copytree(run_path, damaged)
    lines = (damaged / "journal.jsonl").read_text().splitlines(keepends=True)
    lines[4] = lines[4].replace('"batch":0', '"batch":1')
    (damaged / "journal.jsonl").write_text("".join(lines))
    with pytest.raises(RecordError, match="line 5 does not match its checksum"):
        load_run(damaged)


def test_load_runs_expands_a_sweep_into_its_runs(eps_sweep: Path, tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"It is a sweep; its runs are .*eps=4_255"):
        load_run(eps_sweep)
    runs = load_runs([eps_sweep])
    assert [run.name for run in runs] == ["eps=4_255", "eps=1_255"]
    (series,) = find_series(runs)
    assert series.over == "eps"
    assert [place.text for place in series.places] == ["1/255", "4/255"]
    assert differing(runs) == {"threat.eps": ["4/255", "1/255"]}


def test_eps_series_in_two_norms_are_labeled_by_their_norm(
    subject: Subject, tmp_path: Path
) -> None:
    paths = []
    for norm, eps in (("linf", "2/255"), ("linf", "4/255"), ("l2", "0.2"), ("l2", "0.5")):
        threat = ThreatModel(norm, eps)
        run = replace(small(subject), threat=threat, attacks=(), defenses={})
        paths.append(tmp_path / f"{norm}-{len(paths)}")
        evaluate(run, Settings(n=4, batch_size=4), out=paths[-1])
    found = find_series(load_runs(paths))
    assert [series.label for series in found] == ["threat.norm linf", "threat.norm l2"]


def test_repeat_command_warns_only_about_models_outside_the_catalogs(run_path: Path) -> None:
    loaded = load_run(run_path)
    spec = loaded.run.spec
    for name, is_known in (("torchvision/resnet50", True), ("hf/org/name", True), ("timm", False)):
        model = spec.model.model_copy(update={"name": name})
        changed = spec.model_copy(update={"model": model})
        run = replace(loaded, run=loaded.run.model_copy(update={"spec": changed}))
        factory = any(caveat.startswith("the model ") for caveat in commands(run).caveats)
        assert factory is not is_known


def test_runs_that_vary_eps_and_batch_size_form_one_series_each(
    eps_sweep: Path, batch_sweep: Path
) -> None:
    runs = load_runs([eps_sweep, batch_sweep])
    found = {series.over: series for series in find_series(runs)}
    assert found.keys() == {"eps", "batch size"}
    # The run with batch size 8 and eps 2/255 belongs to both series.
    assert [place.text for place in found["eps"].places] == ["1/255", "2/255", "4/255"]
    assert [place.text for place in found["batch size"].places] == ["4", "8"]


def test_equal_folder_names_are_disambiguated_and_repeated_runs_refused(
    run_path: Path, sample_run: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other" / "first"
    shutil.copytree(run_path, other)
    names = [run.name for run in load_runs([run_path, other])]
    assert names == [f"{run_path.parent.name}/first", "other/first"]
    with pytest.raises(ConfigError, match="named 2 times"):
        load_runs([run_path, sample_run, run_path])


def test_write_report_refuses_unknown_formats_no_runs_and_unwritable_paths(
    run_path: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"must end in .html, .md, .csv, .json, .*did you mean"):
        write_report([run_path], tmp_path / "r.htm")
    with pytest.raises(ConfigError, match="at least one run"):
        write_report([], tmp_path / "r.html")
    (tmp_path / "folder.md").mkdir()
    with pytest.raises(RecordError, match="cannot write"):
        write_report([run_path], tmp_path / "folder.md")


def test_list_runs_finds_nested_runs_and_reports_damaged_ones(
    run_path: Path, partial_run: Path, tmp_path: Path
) -> None:
    shutil.copytree(run_path, tmp_path / "b" / "whole")
    shutil.copytree(partial_run, tmp_path / "a")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "run.json").write_text("no json")
    training = tmp_path / "d"
    shutil.copytree(run_path, training / "measured-pgd-16")
    (training / "run.json").write_text('{"kind": "training"}')
    partial, whole, broken, measured = list_runs(tmp_path)
    assert measured.path == str(training / "measured-pgd-16")
    assert (partial.status, partial.units_done) == ("interrupted", 9)
    assert whole.error is None
    assert (whole.model, whole.threat, whole.samples) == ("tiny-cnn", "linf 2/255", 16)
    dent = next(line for line in whole.defenses if line.name == "dent")
    assert dent.flags == ("batch dependent", "not as named")
    assert dent.worst == load_run(run_path).result.defenses["dent"].worst.served
    assert broken.error is not None
    assert "run.json is damaged" in broken.error
    with pytest.raises(RecordError, match=r"does not exist\. Name a folder"):
        list_runs(tmp_path / "nowhere")


@settings(max_examples=16, deadline=None)
@given(member=st.integers(0, 15))
def test_sample_story_matches_the_journal(run_path: Path, member: int) -> None:
    batch, place = divmod(member, 8)
    plan = json.loads((run_path / "plan.json").read_text())["batches"][batch]
    story = sample_story(load_run(run_path), plan["ids"][place])
    assert (story.label, story.batches) == (plan["labels"][place], (batch,))
    told = {
        (each.defense, answer.kind, answer.attack): answer
        for each in story.defenses
        for answer in each.answers
    }
    for line in (run_path / "journal.jsonl").read_text().splitlines():
        record = json.loads(line)["record"]
        if record["kind"] == "probe" or record["batch"] != batch:
            continue
        answer = told.pop((record["defense"], record["kind"], record["attack"]))
        assert answer.predicted == record["served"][place]
        assert answer.predicted_name == f"kind {record['served'][place]}"
        assert answer.correct == (record["served"][place] == story.label)
        assert answer.claimed == (record["claimed"][place] if record["claimed"] else None)
        assert answer.mismatch == (answer.claimed is not None and answer.claimed == answer.correct)
    assert not told


def test_printed_sample_story_says_attacked_and_not_perturbed(
    run_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show_sample(sample_story(load_run(run_path), 0))
    said = capsys.readouterr().out
    assert "attacked" in said
    assert "perturbed" not in said


def test_unknown_sample_id_is_refused_with_examples_of_valid_ids(run_path: Path) -> None:
    with pytest.raises(RecordError, match=r"no sample with the id 77; it has 0, 1, .*16 in all"):
        sample_story(load_run(run_path), 77)


def test_repeat_command_contains_the_settings_and_lists_caveats(
    sample_run: Path, run_path: Path
) -> None:
    found = commands(load_run(sample_run))
    assert "--dataset cifar10-sample --n 16" in found.again
    assert "--attack apgd-ce --iterations 2" in found.again
    assert found.verify == f"dent verify {sample_run}"
    assert [caveat.partition(":")[0] for caveat in found.caveats] == [
        "the model 'tiny-cnn'",
        "the defense 'smoothing'",
    ], "sigma is not that of the defense of this name"
    mixed = commands(load_run(run_path)).caveats
    assert "the settings of the attacks, with different iterations each: see the spec" in mixed


def test_verify_command_of_a_run_of_own_code_allows_the_code(
    run_path: Path, tmp_path: Path
) -> None:
    """`dent verify` without `--allow-code` refuses such a run."""
    shutil.copytree(run_path, tmp_path / "own")
    loaded = load_run(tmp_path / "own")
    model = loaded.run.spec.model.model_copy(update={"name": "my_code:model"})
    spec = loaded.run.spec.model_copy(update={"model": model})
    own = replace(loaded, run=loaded.run.model_copy(update={"spec": spec}))
    found = commands(own)
    assert found.verify == f"dent verify {tmp_path / 'own'} --allow-code"
    assert found.code == ("my_code:model",)
    assert (commands(loaded).code, "--allow-code" in commands(loaded).verify) == ((), False)


@pytest.mark.parametrize(("precision", "caveats"), [("model", 0), ("bfloat16", 1)])
def test_repeat_command_names_a_configuration_only_in_its_own_precision(
    subject: Subject, tmp_path: Path, precision: Literal["model", "bfloat16"], caveats: int
) -> None:
    dent_plus = Dent(subject.model, performance=Performance(precision=precision))
    named = replace(small(subject), attacks=(), defenses={"dent+": dent_plus})
    evaluate(named, Settings(n=4, batch_size=4), out=tmp_path / "run")
    found = commands(load_run(tmp_path / "run"))
    assert "--defense dent+" in found.again
    assert len([each for each in found.caveats if "the defense 'dent+'" in each]) == caveats


@pytest.mark.parametrize("name", ["dynamic", "dynamic-2", "dynamic-1"])
def test_repeat_command_takes_only_the_newest_suite(run_path: Path, name: SuiteName) -> None:
    loaded = load_run(run_path)
    spec = loaded.run.spec
    attacks = tuple(attack_spec(each, threat_of(spec.threat)) for each in suite(name, "small"))
    changed = spec.model_copy(update={"attacks": attacks})
    found = commands(replace(loaded, run=loaded.run.model_copy(update={"spec": changed})))
    is_newest = name == "dynamic"
    assert ("--suite" in found.again) is is_newest
    caveat = f"the attacks: dent.evaluation.suite('{name}', 'small') in Python"
    assert (caveat in found.caveats) is not is_newest


def test_command_of_a_run_to_the_end_without_a_suite_has_a_caveat(run_path: Path) -> None:
    """The command line has --to-the-end only for a suite."""
    loaded = load_run(run_path)
    settings = loaded.run.spec.settings.model_copy(update={"until": "end"})
    spec = loaded.run.spec.model_copy(update={"settings": settings})
    found = commands(replace(loaded, run=loaded.run.model_copy(update={"spec": spec})))
    assert "--to-the-end" not in found.again
    assert "the setting until='end'" in found.caveats
    assert not any("until=" in caveat for caveat in commands(loaded).caveats)


def moved(loaded: RecordedRun, sentences: dict[str, str]) -> RecordedRun:
    """Add a diagnostic, which exists only if it is raised, to some defenses."""
    defenses = {
        name: each.model_copy(update={"diagnostics": (*each.diagnostics, raised(sentences[name]))})
        if name in sentences
        else each
        for name, each in loaded.result.defenses.items()
    }
    changed = replace(loaded)
    vars(changed)["result"] = loaded.result.model_copy(update={"defenses": defenses})
    return changed


def raised(sentence: str) -> Diagnostic:
    return Diagnostic(
        name="no step moved anything", state="raised", value=1.0, threshold=0.5, sentence=sentence
    )


@pytest.mark.parametrize("name", ["static", "dent"])
def test_html_report_has_the_diagnostics_that_only_one_defense_has(
    run_path: Path, name: str
) -> None:
    page = to_html([NamedRun("it", moved(load_run(run_path), {name: "Nothing moved."}))])
    table = page.partition("Every diagnostic of every defense")[2].partition("</table>")[0]
    row = table.partition('<th scope="row">no step moved anything')[2].partition("</tr>")[0]
    assert row.count("raised") == 2  # the class and the text of one cell
    assert row.count('<td class="blank"></td>') == 3


def test_flag_has_the_sentence_of_every_defense_that_raises_it(run_path: Path) -> None:
    def sentence(sentences: dict[str, str]) -> str:
        flags = of_one(moved(load_run(run_path), sentences).result).all
        return next(flag.sentence for flag in flags if flag.name == "no step moved anything")

    assert sentence({"static": "All of 3.", "dent": "All of 3."}) == "All of 3."
    differing = {"static": "All of 3.", "dent": "7 of 12.", "noisy": "All of 3."}
    assert sentence(differing) == "static, noisy: All of 3. dent: 7 of 12."


def test_runs_without_attacks_static_model_or_tensors_have_reports(
    subject: Subject, tmp_path: Path
) -> None:
    """One run has no attack; the other is mixed, without static model and stored tensors."""
    bare = replace(small(subject), attacks=())
    evaluate(bare, Settings(n=4, batch_size=4), out=tmp_path / "bare")
    evaluate(bare, Settings(ids=(5, 1, 2), batch_size=4), out=tmp_path / "ids")
    assert "--ids 1-2,5 --" in commands(load_run(tmp_path / "ids")).again
    odd = Settings(n=4, batch_size=4, mix=0.5, static=False, tensors="drop")
    evaluate(small(subject), odd, out=tmp_path / "odd")
    page = write_report([tmp_path / "bare"], tmp_path / "bare.html").read_text()
    assert "No attack was run" in page
    page = write_report([tmp_path / "odd", tmp_path / "bare"], tmp_path / "odd.html").read_text()
    assert "nobody knows whether a defense adds anything" in page
    assert "the run did not keep them" in page
    assert "Clean members" in page
    for suffix in (".md", ".csv", ".json"):
        write_report([tmp_path / "odd", tmp_path / "bare"], tmp_path / f"odd{suffix}")
    found = commands(load_run(tmp_path / "odd"))
    assert "--no-static" in found.again
    assert "--mix 0.5 --tensors drop" in found.again
    assert "the setting transfer=True" in found.caveats


def test_a_complete_run_that_lost_records_is_listed_as_partial(
    run_path: Path, tmp_path: Path
) -> None:
    shutil.copytree(run_path, tmp_path / "a")
    journal = tmp_path / "a" / "journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[:3]))
    (cut,) = list_runs(tmp_path)
    assert (cut.status, cut.units_done) == ("partial", 3)


def test_html_markdown_and_csv_mark_an_unfinished_run(partial_run: Path, tmp_path: Path) -> None:
    for suffix in (".html", ".md"):
        text = write_report([partial_run], tmp_path / f"r{suffix}").read_text()
        assert "Not finished" in text
        assert "9 of 14 units" in text
    rows = (write_report([partial_run], tmp_path / "r.csv").read_text()).splitlines()[1:]
    assert all(",partial," in row for row in rows)


def test_run_with_schema_version_1_can_be_reported(tmp_path: Path) -> None:
    golden = ROOT / "tests" / "evaluation" / "golden" / "v1"
    page = write_report([golden], tmp_path / "r.html").read_text()
    assert '<h2 id="run-1-headline">' in page
