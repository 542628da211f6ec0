"""Contradictory records are refused when they are read, with a message of one sentence."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dent.evaluation import RecordError, evaluate, load_run, verify
from dent.evaluation.records.journal import JOURNAL
from dent.report import list_runs
from dent.storage.canonical import canonical, digest
from dent.storage.plain_json import DEEPEST, parse
from tests.evaluation.subjects import SMALL, make_subject


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("consistency") / "run"
    evaluate(make_subject(), SMALL, out=path)
    return path


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def forge(folder: Path, change: Callable[[dict[str, Any]], object], key: str) -> None:
    """Edit the first record of a kind and update its checksum to match."""
    lines = (folder / JOURNAL).read_text().splitlines()
    records = [json.loads(line)["record"] for line in lines]
    at = next(i for i, each in enumerate(records) if each["kind"] == key)
    change(records[at])
    lines[at] = canonical({"record": records[at], "sha256": digest(records[at])})
    (folder / JOURNAL).write_text("\n".join(lines) + "\n")


def points(*each: dict[str, Any]) -> Callable[[dict[str, Any]], object]:
    """Return a change of a probe: a gradient check with these points."""
    right = {"members": 1, "errors": [0.0], "alike": 1.0, "same": 1, "of": 1, "coarse": [0.1]}
    check = {"rung": "plain", "threshold": 0.001, "points": [right | point for point in each]}
    return lambda record: record.update(gradient=check)


RECORDS: dict[str, tuple[str, Callable[[dict[str, Any]], object], str]] = {
    "too few served": ("natural", lambda r: r["served"].pop(), "7 predictions for 8 members"),
    "a negative class": ("natural", lambda r: r["served"].__setitem__(0, -1), "out of range"),
    "a huge class": ("natural", lambda r: r["served"].__setitem__(0, 10**30), "out of range"),
    "too few claims": ("attack", lambda r: r["claimed"].pop(), "7 claims for 8"),
    "no claims": ("attack", lambda r: r.update(claimed=None), "there is a claim where nothing"),
    "claims of nothing": ("natural", lambda r: r.update(claimed=[True] * 8), "there is a claim"),
    "a short view": ("natural", lambda r: r.update(views={"x": [0]}), "1 prediction for 8 members"),
    "a short draw": ("natural", lambda r: r.update(draws=[[0]] * 10), "1 prediction for 8 members"),
    "a huge drawn class": (
        "natural",
        lambda r: r.update(draws=[[10**30] * 8] * 10),
        "a class in a view or draw is out of range",
    ),
    "one draw": ("natural", lambda r: r.update(draws=[[0] * 8]), "cannot both choose and score"),
    "too few gradients": (
        "attack",
        lambda r: r.update(gradients=[1]),
        "1 count of gradients for 8 attacked members",
    ),
    "too few zero gradients": (
        "attack",
        lambda r: r.update(zero_gradients=[1, 0]),
        "2 counts of gradients for 8 attacked members",
    ),
    "a natural unit that leaves out members": (
        "natural",
        lambda r: r.update(carried=[True] * 8),
        "nothing attacked, but there is carried",
    ),
    "a transfer that made queries and saw no logits": (
        "transfer",
        lambda r: r.update(queries=9, non_finite=3),
        "nothing attacked, but there is queries, non_finite",
    ),
    "a natural unit with a share of eps and a note": (
        "natural",
        lambda r: r.update(used=[0.0] * 8, notes=["not available: x"]),
        "nothing attacked, but there is used, notes",
    ),
    "answers apart by nothing": (
        "natural",
        lambda r: r.update(apart={"with gradients": 0.0}),
        "answers lie apart by no more than rounding",
    ),
    "too many fell": (
        "attack",
        lambda r: r.update(claimed_after={"x": 9}),
        "more members fell after a part",
    ),
    "huge queries": ("attack", lambda r: r.update(queries=10**30), "queries"),
    "too few sources": ("assembled", lambda r: r["sources"].pop(), "7 sources"),
    "a source that is none": (
        "assembled",
        lambda r: r["sources"].__setitem__(0, 4),
        "sources, up to 4",
    ),
    "sources of nothing": ("attack", lambda r: r.update(sources=[0] * 8), "there are sources"),
    "a tensor of nothing": (
        "natural",
        lambda r: r.update(
            tensor={"file": "adversarial/a.safetensors", "sha256": "0" * 64, "shape": [8, 3, 6, 6]}
        ),
        "a natural unit has a tensor",
    ),
    "the tensor of another unit": (
        "attack",
        lambda r: r["tensor"].update(file="adversarial/000001-00-00.safetensors"),
        "expected adversarial/000000-00-00",
    ),
    "a tensor of other rows": (
        "attack",
        lambda r: r["tensor"]["shape"].__setitem__(0, 9),
        "the shape of its tensor",
    ),
    "an image as large as a disk": (
        "attack",
        lambda r: r["tensor"].update(shape=[8, 3, 10**6, 10**6]),
        "the shape of its tensor",
    ),
    "a flat tensor": ("attack", lambda r: r["tensor"].update(shape=[8]), "the shape of its"),
    "rows": ("natural", lambda r: r["trace"].update(rows=9), "more than 8 attacked members"),
    "statuses": ("natural", lambda r: r["trace"].update(status={"a": 9}), "more than 8"),
    "an entropy": ("natural", lambda r: r["trace"].update(entropy=[1e308] * 9), "trace: a value"),
    "a sigma": ("natural", lambda r: r["trace"].update(sigma=[1e300]), "trace: a value"),
    "ragged sigmas": (
        "natural",
        lambda r: r["trace"].update(sigma_by_step=[[1.0], [1.0, 2.0]]),
        "another length",
    ),
    "seconds": ("natural", lambda r: r["timing"].update(total=1e308), "a time or the seed"),
    "a seed": ("natural", lambda r: r.update(seed=10**40), "a time or the seed"),
    "changed": ("probe", lambda r: r["repeated"].update(changed=5), "more members than were asked"),
    "members": ("probe", lambda r: r["permuted"].update(members=0), "more members than were asked"),
    "no rows": ("probe", lambda r: r.update(rows=0), "rows are probabilities"),
    "probabilities": ("probe", lambda r: r.update(probabilities=9), "9 of 8 rows"),
    "gradients": ("probe", lambda r: r.update(zero_gradients=9), "9 of . gradients are zero"),
    "a follow-up": (
        "probe",
        lambda r: r.update(huge_eps={"attack": "a", "total": 4, "correct": 5, "before": None}),
        "a follow-up left more",
    ),
    "attacks that nobody asked for": (
        "probe",
        lambda r: r.update(
            more_iterations=[{"attack": "push", "total": 8, "correct": 0, "before": 8}]
        ),
        "attacks with more iterations are recorded, but the settings do not ask",
    ),
    "no points": ("probe", points(), "the gradient certificate has no points"),
    "no members": ("probe", points({"members": 0, "errors": [], "coarse": []}), "0 errors for 0"),
    "too few errors": ("probe", points({}, {"members": 2}), "1 error for 2 of 8 members"),
    "too many errors": (
        "probe",
        points({"members": 9, "errors": [0.0] * 9, "coarse": None}),
        "9 errors for 9 of 8 members",
    ),
    "large steps": ("probe", points({"coarse": []}), "0 errors over large steps for 1 member"),
}


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_that_contradicts_itself_is_refused(name: str, folder: Path) -> None:
    kind, change, says = RECORDS[name]
    forge(folder, change, kind)
    with pytest.raises(RecordError, match=f"{JOURNAL}: {kind}/.*{says}"):
        load_run(folder)
    assert verify(folder).status == "failed"


def test_a_gradient_check_with_points_or_a_reason_is_read(folder: Path) -> None:
    forge(folder, points({}, {"coarse": None}), "probe")
    assert load_run(folder).result
    missing = {"rung": "plain", "missing": "it has no gradient"}
    forge(folder, lambda record: record.update(gradient=missing), "probe")
    assert load_run(folder).result


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    plain = json.loads(path.read_text())
    change(plain)
    path.write_text(json.dumps(plain))


def replan(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Edit the plan and update its digest in run.json to match."""
    edit(folder / "plan.json", change)
    plan = json.loads((folder / "plan.json").read_text())
    edit(folder / "run.json", lambda run: run.update(plan=digest(plan)))


def move_to_the_last_batch(plan: dict[str, Any]) -> None:
    first, *_, last = plan["batches"]
    for name in ("positions", "ids", "labels"):
        last[name].append(first[name].pop())
    first["attacked"], last["attacked"] = first["attacked"] - 1, last["attacked"] + 1


def test_another_number_of_units_than_planned_is_refused(folder: Path) -> None:
    """A run with fewer units than planned looks finished if `run.json` says that these are all."""
    lines = (folder / JOURNAL).read_text().splitlines()
    (folder / JOURNAL).write_text("\n".join(lines[:-1]) + "\n")
    assert load_run(folder).result.status == "partial"
    edit(folder / "run.json", lambda run: run.update(units=len(lines) - 1))
    with pytest.raises(
        RecordError, match=f"says {len(lines) - 1} units, the plan has {len(lines)}"
    ):
        load_run(folder)


PLANS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no batches": (lambda p: p.update(batches=[]), "there are no batches"),
    "an index": (lambda p: p["batches"][0].update(index=7), "its index is 7"),
    "labels": (lambda p: p["batches"][0]["labels"].pop(), "8 positions, 8 ids and 7 labels"),
    "attacked": (lambda p: p["batches"][0].update(attacked=10**12), "1000000000000 of 8 members"),
    "fewer than none": (lambda p: p["batches"][0].update(attacked=-5), "-5 of 8 members"),
    "twice in a batch": (
        lambda p: p["batches"][0]["positions"].__setitem__(0, 1),
        "a sample is there twice",
    ),
    "twice in the run": (
        lambda p: p["batches"][1]["positions"].__setitem__(0, 0),
        "a sample is attacked that another",
    ),
    "outside": (
        lambda p: p["batches"][0]["positions"].__setitem__(0, 40),
        "outside the 40 samples",
    ),
    "a batch too few": (lambda p: p["batches"].pop(), "are attacked, and the settings ask for"),
    "other samples": (
        lambda p: p["batches"][0]["positions"].__setitem__(0, 39),
        "are not the first",
    ),
    "another division": (move_to_the_last_batch, "batches.0: 7 of 7 members are attacked, and the"),
    "an id": (lambda p: p["batches"][0]["ids"].__setitem__(0, -1), "an id or a label"),
}


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_that_contradicts_itself_is_refused(name: str, folder: Path) -> None:
    change, says = PLANS[name]
    replan(folder, change)
    with pytest.raises(RecordError, match=rf"plan\.json: .*{says}"):
        load_run(folder)


RUNS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "two of a name": (
        lambda s: s["defenses"].append(s["defenses"][0]),
        "two of spec.defenses have the same name",
    ),
    "two attacks": (lambda s: s["attacks"].append(s["attacks"][0]), "two of spec.attacks"),
    "no name": (lambda s: s["attacks"][0].update(name=" "), "one of spec.attacks has no name"),
    "no defense": (lambda s: s.update(defenses=[]), "spec.defenses is empty"),
    "no samples": (lambda s: s["dataset"].update(size=0), "spec.dataset.size is 0"),
    "no eps": (lambda s: s["threat"].update(eps="eight"), "spec.threat: eps must be a number"),
    "minutes to read": (lambda s: s["threat"].update(eps="1e9999999"), "spec.threat: eps must"),
    "bounds": (lambda s: s["threat"].update(bounds=[1, 0]), "spec.threat: bounds"),
    "ambiguous names": (
        lambda s: (
            s["attacks"][0].update(name="x"),
            s["attacks"][1].update(name="b/x"),
            s["defenses"][1].update(name="a"),
            s["defenses"].append({**s["defenses"][1], "name": "a/b"}),
        ),
        "is planned twice",
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_specification_that_contradicts_itself_is_refused(name: str, folder: Path) -> None:
    change, says = RUNS[name]
    edit(folder / "run.json", lambda run: change(run["spec"]))
    with pytest.raises(RecordError, match=rf"run\.json: .*{says}"):
        load_run(folder)


def test_a_session_time_out_of_range_is_refused(folder: Path) -> None:
    edit(folder / "run.json", lambda r: r["sessions"][0]["timing"].update(total=1e308))
    with pytest.raises(RecordError, match=r"sessions\.0\.timing is out of range"):
        load_run(folder)


@pytest.mark.parametrize("file", ["run.json", "plan.json", "result.json", JOURNAL])
def test_deeply_nested_json_is_refused_and_other_runs_are_still_listed(
    file: str, folder: Path, finished: Path
) -> None:
    shutil.copytree(finished, folder.parent / "sound")
    (folder / file).write_bytes(b'{"schema_version":1,"record":' + b"[" * 200_000 + b"\n")
    listed = list_runs(folder.parent)
    assert [bool(run.error) for run in listed] == [file != "result.json", False]
    assert verify(folder).status == "failed"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"[" * (DEEPEST + 1) + b"]" * (DEEPEST + 1), "nested deeper"),
        (b"[" * 200_000, "nested deeper"),
        (b'{"a": 1, "a": 2}', "a key is there twice"),
        (b'{"a": {"b": 1, "b": 2}}', "a key is there twice"),
        (b"[NaN]", "NaN is not a number"),
        (b"[-Infinity]", "-Infinity is not a number"),
        (b"[1e400]", "beyond every float"),
        (b"[" + b"9" * 5000 + b"]", "digits"),
        (b"", "Expecting value"),
        (b"\xff\xfe\xfd", "decode"),
    ],
)
def test_ambiguous_or_invalid_json_is_refused(text: bytes, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse(text)


def test_json_of_the_maximum_depth_is_parsed() -> None:
    text = b"[" * DEEPEST + b"]" * DEEPEST
    assert parse(text) == json.loads(text)
    many = json.dumps([[index] for index in range(100)]).encode()
    assert parse(many) == json.loads(many)
