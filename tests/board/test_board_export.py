"""Test the export of rows to Hugging Face and Every Eval Ever: valid formats, correct values."""

import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries

from dent.board.board_row import BoardRow
from dent.board.every_eval_ever import every_eval_ever
from dent.board.hugging_face import hugging_face
from dent.board.listing import read_board_row
from dent.board.metrics import maker, metrics, reason_to_omit
from dent.board.pack import declared_of
from dent.board.submission import RowSubmission, write_submission
from dent.board.tracks import HEADLINE
from dent.errors import MissingExtraError
from dent.evaluation import load_run
from dent.evaluation.results.result import Decision, Dependence
from tests.board.conftest import Put
from tests.board.rows import NAME, make_row
from tests.board.toys import toy
from tests.cli.here import dent

SMALL = toy(half=4, batch_size=4, fixed="0-3")
OWN = RowSubmission(
    name="Our defense+",
    track="toy-v1",
    factory=NAME,
    repository="https://example.org/lab/defense",
    commit="0" * 40,
    contact="us",
    license="MIT",
    evaluated_by="us",
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_row(tmp_path_factory.mktemp("board") / "row", SMALL)
    identity = load_run(folder / HEADLINE).run.identity
    filled = {"identity": identity, "manifest": declared_of(folder)}
    write_submission(folder, OWN.model_copy(update=filled))
    return folder


@pytest.fixture
def row(made: Path, put: Put) -> BoardRow:
    put(SMALL)
    return read_board_row(made)


def with_defense(row: BoardRow, **changes: Any) -> BoardRow:
    """Return a copy of the row, with these fields of its defense's result changed."""
    result = row.headline.result
    defenses = {**result.defenses, NAME: result.defenses[NAME].model_copy(update=changes)}
    changed = result.model_copy(update={"defenses": defenses})
    return replace(row, headline=replace(row.headline, result=changed))


def test_metrics_match_the_result_of_the_row(row: BoardRow) -> None:
    found = {metric.key: metric for metric in metrics(row)}
    defense = row.headline.defense
    assert defense.difference is not None
    assert {key: metric.value for key, metric in found.items()} == {
        "robust_accuracy": defense.worst.served.share,
        "clean_accuracy": defense.natural.share,
        "base_robust_accuracy": row.headline.result.defenses["static"].worst.served.share,
        "robust_gain": defense.difference.value,
    }
    assert found["robust_gain"].interval == defense.difference.interval
    assert {metric.samples for metric in found.values()} == {8}
    for metric in found.values():
        assert metric.interval is not None
        assert metric.bounds[0] <= metric.interval[0] <= metric.value <= metric.interval[1]


def test_metrics_of_a_run_that_stopped_early_are_called_upper_bounds(row: BoardRow) -> None:
    whole = with_defense(row, decided=None)
    assert not any("upper bound" in metric.description for metric in metrics(whole))
    stopped = Decision(after=3, of=18, at_most=0.1, below=False)
    early = {m.key: m.description for m in metrics(with_defense(row, decided=stopped))}
    assert "An upper bound: the run stopped after 3 of 18 attacks" in early["robust_accuracy"]
    assert "because a gain can no longer be shown with these samples." in early["robust_accuracy"]
    assert "An upper bound" in early["robust_gain"]
    assert "An upper bound" not in early["base_robust_accuracy"] + early["clean_accuracy"]


def test_void_departing_and_unfinished_rows_are_omitted_with_a_reason(row: BoardRow) -> None:
    assert reason_to_omit(row) is None
    assert reason_to_omit(replace(row, void="Tuned on the half")) == "void: Tuned on the half"
    departed = replace(row, headline=replace(row.headline, departures=("eps: other",)))
    assert reason_to_omit(departed) == "not the evaluation of its track: eps: other"
    partial = row.headline.result.model_copy(update={"status": "partial"})
    unfinished = replace(row, headline=replace(row.headline, result=partial))
    assert reason_to_omit(unfinished) == "its evaluation is not complete"
    assert "no verdict" in str(reason_to_omit(with_defense(row, verdict=None)))


def test_maker_is_the_owner_of_the_repository_or_torch_dent(row: BoardRow) -> None:
    assert maker(row) == "lab"
    assert maker(replace(row, submission=None)) == "torch-dent"


REQUIRED = {
    (): {
        "schema_version",
        "evaluation_id",
        "retrieved_timestamp",
        "source_metadata",
        "model_info",
        "eval_library",
        "evaluation_results",
    },
    ("source_metadata",): {
        "source_type",
        "source_organization_name",
        "evaluator_relationship",
    },
    ("eval_library",): {"name", "version"},
    ("model_info",): {"name", "id"},
    ("evaluation_results", 0): {
        "evaluation_name",
        "source_data",
        "metric_config",
        "score_details",
    },
    ("evaluation_results", 0, "metric_config"): {
        "lower_is_better",
        "score_type",
        "min_score",
        "max_score",
    },
    ("evaluation_results", 0, "source_data"): {"dataset_name", "source_type"},
    ("evaluation_results", 0, "score_details"): {"score"},
}
"""The required keys in the schema of Every Eval Ever, version 0.2.2."""


UUID4 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}\.json")
"""The file names that the validator of Every Eval Ever accepts."""


def test_every_eval_ever_record_of_our_own_defense_is_of_the_first_party(row: BoardRow) -> None:
    ours = OWN.model_copy(update={"factory": "dent+", "repository": None, "commit": None})
    record = json.loads(every_eval_ever(replace(row, submission=ours), now=1.0)[1])
    assert record["model_info"]["developer"] == "torch-dent"
    assert record["model_info"]["additional_details"]["model_availability"] == "open_weights"
    assert record["source_metadata"]["evaluator_relationship"] == "first_party"
    theirs = OWN.model_copy(update={"factory": "tent"})
    record = json.loads(every_eval_ever(replace(row, submission=theirs), now=1.0)[1])
    assert record["source_metadata"]["evaluator_relationship"] == "third_party"


def test_every_eval_ever_record_has_the_keys_that_its_schema_requires(row: BoardRow) -> None:
    path, content = every_eval_ever(row, now=1.6e9)
    record = json.loads(content)
    for place, keys in REQUIRED.items():
        part = record
        for key in place:
            part = part[key]
        assert keys <= set(part), place
    assert record["schema_version"] == "0.2.2"
    assert record["retrieved_timestamp"] == "1600000000"
    assert record["source_metadata"]["evaluator_relationship"] == "first_party"
    assert record["model_info"]["id"] == "lab/Our_defenseplus"
    assert path.startswith("data/torch-dent-board/lab/Our_defenseplus/")
    assert UUID4.fullmatch(path.rpartition("/")[2])
    details = record["model_info"]["additional_details"]
    assert (details["deployment_type"], details["model_availability"]) == (
        "self_deployed",
        "unknown",
    )
    assert [each["metric_config"]["metric_kind"] for each in record["evaluation_results"]] == [
        "robust_accuracy",
        "accuracy",
        "base_robust_accuracy",
        "robust_gain",
    ]
    assert [each["score_details"]["score"] for each in record["evaluation_results"]] == [
        metric.value for metric in metrics(row)
    ]
    assert not details_that_are_no_text(record)


def details_that_are_no_text(part: Any) -> list[Any]:
    """Return the values in `details` and `additional_details` that are not strings.

    The schema requires strings.
    """
    found = []
    if isinstance(part, dict):
        for key, value in part.items():
            if key in ("details", "additional_details"):
                found += [each for each in value.values() if not isinstance(each, str)]
            found += details_that_are_no_text(value)
    elif isinstance(part, list):
        for value in part:
            found += details_that_are_no_text(value)
    return found


def test_export_path_depends_on_the_run_but_not_on_the_time(row: BoardRow) -> None:
    path = every_eval_ever(row, now=1.0)[0]
    assert every_eval_ever(row, now=2.0)[0] == path
    other = row.headline.result.model_copy(update={"identity": "0" * 64})
    changed = replace(row, headline=replace(row.headline, result=other))
    assert every_eval_ever(changed, now=1.0)[0] != path


def test_dataset_on_the_hub_is_exported_with_its_repository_and_sample_ids(row: BoardRow) -> None:
    result = row.headline.result
    spec = result.spec.model_copy(
        update={"dataset": result.spec.dataset.model_copy(update={"name": "cifar10"})}
    )
    known = replace(
        row,
        headline=replace(row.headline, result=result.model_copy(update={"spec": spec})),
    )
    record = json.loads(every_eval_ever(known, now=1.0)[1])
    source = record["evaluation_results"][0]["source_data"]
    assert source["source_type"] == "hf_dataset"
    assert source["hf_repo"] == "uoft-cs/cifar10"
    assert source["sample_ids"] == [str(each) for each in SMALL.ids("1f")]


def test_hugging_face_hub_parses_the_model_card(row: BoardRow) -> None:
    (path, content), *rest = hugging_face(row, url="https://example.org/board").items()
    assert path == "toy-v1/row/README.md"
    assert rest == []
    data = ModelCard(content.decode()).data
    assert data.model_name == "Our defense+"
    found = {metric.key: metric for metric in metrics(row)}
    assert [
        (each.metric_type, each.metric_name, each.metric_value) for each in data.eval_results
    ] == [
        (kind, found[key].title, found[key].value)
        for kind, key in (
            ("robust_accuracy", "robust_accuracy"),
            ("accuracy", "clean_accuracy"),
            ("robust_gain", "robust_gain"),
        )
    ]
    assert "Robust accuracy of the base model" in content.decode()
    assert {each.source_url for each in data.eval_results} == {"https://example.org/board"}


def test_names_in_the_model_card_are_no_markdown_and_no_html(row: BoardRow) -> None:
    hostile = "<img src=x> [a](javascript:alert(1)) # b"
    submission = OWN.model_copy(update={"name": hostile})
    card = hugging_face(replace(row, submission=submission))["toy-v1/row/README.md"].decode()
    _, front, body = card.split("---\n", 2)
    assert yaml.safe_load(front)["model-index"][0]["name"] == hostile
    assert body.startswith("# &lt;img src=x&gt; \\[a\\]")
    assert "<img" not in body


def test_hugging_face_hub_parses_the_benchmark_entries(row: BoardRow) -> None:
    files = hugging_face(row, benchmark="lab/board")
    content = files["toy-v1/row/.eval_results/toy-v1.yaml"]
    entries = parse_eval_result_entries(yaml.safe_load(content))
    assert {each.dataset_id for each in entries} == {"lab/board"}
    assert {each.task_id: each.value for each in entries} == {
        f"toy-v1_{metric.key}": metric.value for metric in metrics(row)
    }


def test_an_old_client_of_the_hub_is_refused_with_advice(
    row: BoardRow, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = SimpleNamespace(__version__="0.36.0", EvalResult=huggingface_hub.EvalResult)
    monkeypatch.setitem(sys.modules, "huggingface_hub", old)
    with pytest.raises(MissingExtraError, match=r"1\.4 or later, and 0\.36\.0 is installed: pip"):
        hugging_face(row, benchmark="lab/board")


@pytest.mark.parametrize("place", ["huggingface", "every-eval-ever"])
def test_board_export_command_writes_the_rows_of_a_folder(
    made: Path, put: Put, tmp_path: Path, place: str
) -> None:
    put(SMALL)
    said = dent("board", "export", str(made.parent), "--to", place, "--out", str(tmp_path / "out"))
    assert said.code == 0, said.err
    assert "1 file written" in said.out
    (written,) = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert b"Robust accuracy" in written.read_bytes()


def test_every_eval_ever_record_has_a_measured_batch_dependence(row: BoardRow) -> None:
    for measured, said in ((None, "false"), (True, "true")):
        dependence = Dependence(declared=False, measured=measured)
        record = json.loads(every_eval_ever(with_defense(row, dependence=dependence), now=1.0)[1])
        details = record["model_info"]["additional_details"]
        assert details["predictions_depend_on_the_batch"] == said


@pytest.mark.parametrize(
    ("names", "place"),
    [
        (("a/mine", "b/mine"), "huggingface"),
        (("mine+", "mineplus"), "huggingface"),
        (("a/mine", "b/mine"), "every-eval-ever"),
    ],
)
def test_rows_with_the_same_file_are_refused_before_anything_is_written(
    made: Path, put: Put, tmp_path: Path, names: tuple[str, str], place: str
) -> None:
    put(SMALL)
    for name in names:
        shutil.copytree(made, tmp_path / "board" / name)
    out = tmp_path / "out"
    said = dent("board", "export", str(tmp_path / "board"), "--to", place, "--out", str(out))
    assert said.code == 2
    assert "would both be written to" in said.err
    assert all(str(tmp_path / "board" / name) in said.err for name in names)
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--to", "hugingface"), "Did you mean 'huggingface'"),
        (("--to", "huggingface", "--benchmark", "board"), "expected ORG/NAME, got 'board'"),
        (("--to", "every-eval-ever", "--benchmark", "a/b"), "--benchmark is for huggingface"),
    ],
)
def test_invalid_export_options_are_refused(
    made: Path, put: Put, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    put(SMALL)
    out = tmp_path / "out"
    said = dent("board", "export", str(made.parent), *arguments, "--out", str(out))
    assert said.code != 0
    assert message in " ".join(said.err.split())
    assert not out.exists()
