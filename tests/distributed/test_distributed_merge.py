"""Test `merge` of shards and copies of a run: the records of one process, or a refusal."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from dent.attacks import make
from dent.distributed import ConflictError, merge
from dent.errors import ConfigError
from dent.evaluation import (
    Progress,
    RecordError,
    Settings,
    SpecMismatchError,
    Subject,
    evaluate,
    load_run,
    verify,
)
from dent.evaluation.records.journal import JOURNAL
from dent.evaluation.records.shard import Shard
from dent.storage.canonical import digest, without_timing
from tests.distributed.fake_pool import evaluate_by_fakes
from tests.distributed.toys import contents
from tests.evaluation.subjects import Push, make_subject
from tests.evaluation.test_evaluation_by_attack import subject as by_attack

SETTINGS = Settings(n=20, batch_size=4)


def subject() -> Subject:
    published = make("apgd-ce", iterations=1, protocol="published")
    return make_subject(attacks=[Push(0.5, name="nudge"), Push(), published], size=20)


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("single") / "run"
    evaluate(subject(), SETTINGS, out=folder)
    return folder


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("shards")
    for number in (1, 2, 3):
        evaluate(subject(), SETTINGS, out=folder / str(number), shard=Shard(number, 3))
    return [folder / str(number) for number in (1, 2, 3)]


def lines(folder: Path) -> list[object]:
    text = (folder / JOURNAL).read_text().splitlines()
    return [without_timing(json.loads(line)["record"]) for line in text]


def edited(folder: Path, where: Path, edit: Callable[[dict[str, object]], None]) -> Path:
    """Copy a run, edit its first natural record, and recompute the checksums."""
    shutil.copytree(folder, where)
    kept = []
    for line in (where / JOURNAL).read_text().splitlines():
        record = json.loads(line)["record"]
        if record["kind"] == "natural" and edit is not None:
            edit(record)
            edit = None  # type: ignore[assignment]
        kept.append(json.dumps({"record": record, "sha256": digest(record)}))
    (where / JOURNAL).write_text("\n".join(kept) + "\n")
    return where


def test_shards_are_marked_as_partial_and_share_no_unit(shards: list[Path]) -> None:
    runs = [load_run(folder) for folder in shards]
    keys = [key for run in runs for key in run.records]
    assert len(keys) == len(set(keys)) == runs[0].run.units
    for run in runs:
        assert (run.run.status, run.result.status) == ("partial", "partial")
        assert json.loads((run.path / "result.json").read_text())["status"] == "partial"
        assert not verify(run.path).problems


def test_merged_shards_equal_the_run_of_one_process(
    single: Path, shards: list[Path], tmp_path: Path
) -> None:
    merged = merge(shards[::-1], tmp_path / "deep" / "run")
    assert (merged.missing, merged.duplicates) == ((), 0)
    assert contents(tmp_path / "deep" / "run") == contents(single)
    assert lines(tmp_path / "deep" / "run") == lines(single)  # in the same order, too
    found = verify(tmp_path / "deep" / "run", subject())
    assert found.status == "verified", found.problems
    assert [s.units for s in load_run(tmp_path / "deep" / "run").run.sessions] == [
        len(load_run(folder).records) for folder in shards
    ]
    assert not list(tmp_path.rglob(".tmp-*"))


def test_missing_units_are_reported_and_a_repeated_evaluation_adds_them(
    single: Path, shards: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    merged = merge([shards[0], shards[2]], out)
    assert set(merged.missing) == set(load_run(shards[1]).records)
    batches = {r.batch for r in load_run(shards[1]).units() if r.batch is not None}
    assert set(merged.missing_batches) - {0} == batches - {0}
    assert (merged.units_done, load_run(out).run.status) == (
        merged.units_planned - len(merged.missing),
        "partial",
    )
    assert not verify(out).problems
    evaluate(subject(), SETTINGS, out=out)
    assert contents(out) == contents(single)


@settings(
    max_examples=5,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    stops=st.lists(st.integers(1, 18), min_size=2, max_size=3),
    tensors=st.sampled_from(["keep", "drop"]),
)
def test_interrupted_runs_can_be_merged_and_then_resumed_to_the_end(
    tmp_path_factory: pytest.TempPathFactory, stops: list[int], tensors: Any
) -> None:
    base = tmp_path_factory.mktemp("cut")
    small, chosen = make_subject(), Settings(n=8, batch_size=4, tensors=tensors)
    for number, at in enumerate(stops):

        def stop(state: Progress, at: int = at) -> None:
            if state.done >= at and state.unit is not None:
                raise KeyboardInterrupt

        part = base / str(number)
        with pytest.raises(KeyboardInterrupt):
            evaluate_by_fakes(small, chosen, part, size=2, seed=number, progress=stop)
    merged = merge([base / str(number) for number in range(len(stops))], base / "run")
    union = {key for n in range(len(stops)) for key in load_run(base / str(n)).records}
    assert set(load_run(base / "run").records) == union
    assert merged.units_done == len(union)
    evaluate(small, chosen, out=base / "run")
    evaluate(small, chosen, out=base / "one")
    assert contents(base / "run") == contents(base / "one")


def test_duplicates_that_differ_only_in_timing_are_merged(
    single: Path, shards: list[Path], tmp_path: Path
) -> None:
    def later(record: dict[str, object]) -> None:
        record["timing"] = {"total": 99.0, "attack": 0.0, "serve": 1.0, "static": None}

    copy = edited(single, tmp_path / "copy", later)
    merged = merge([*shards, copy], tmp_path / "run")
    assert merged.duplicates == merged.units_planned
    assert contents(tmp_path / "run") == contents(single)


def test_conflicting_records_are_named_and_nothing_is_written(
    single: Path, shards: list[Path], tmp_path: Path
) -> None:
    def other(record: dict[str, object]) -> None:
        served = record["served"]
        assert isinstance(served, list)
        served[0] = (served[0] + 1) % 4

    forged = edited(single, tmp_path / "forged", other)
    with pytest.raises(ConflictError) as refused:
        merge([*shards, forged], tmp_path / "run")
    (conflict,) = refused.value.conflicts
    assert "natural/0/static/None.served.0: " in conflict
    assert f"{forged} has" in conflict
    assert sorted(item.name for item in tmp_path.iterdir()) == ["forged"]


def test_runs_of_another_evaluation_are_refused(
    single: Path, shards: list[Path], tmp_path: Path
) -> None:
    evaluate(make_subject(attacks=[], size=20), SETTINGS, out=tmp_path / "other")
    with pytest.raises(SpecMismatchError, match=r"other records another evaluation") as refused:
        merge([shards[0], tmp_path / "other"], tmp_path / "run")
    assert any("attacks" in item and "other has" in item for item in refused.value.differences)
    assert not (tmp_path / "run").exists()


def test_invalid_merges_are_refused_and_write_nothing(
    shards: list[Path], single: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="nothing to merge"):
        merge([], tmp_path / "run")
    with pytest.raises(ConfigError, match="named twice"):
        merge([single, single / "." / ""], tmp_path / "run")
    with pytest.raises(RecordError, match="already exists"):
        merge(shards, single)
    broken = shutil.copytree(shards[0], tmp_path / "broken")
    next((broken / "adversarial").iterdir()).write_bytes(b"no")
    with pytest.raises(RecordError, match="not what was written"):
        merge([broken, *shards[1:]], tmp_path / "run")
    assert sorted(item.name for item in tmp_path.iterdir()) == ["broken"]
    (tmp_path / "empty").mkdir()
    assert not merge(shards, tmp_path / "empty").missing


@pytest.mark.parametrize("tensors", ["keep", "drop"])
def test_merged_shards_of_a_suite_equal_the_run_of_one_process(
    tmp_path: Path, tensors: Any
) -> None:
    chosen = Settings(n=8, batch_size=4, until="end", tensors=tensors)
    evaluate(by_attack(), chosen, out=tmp_path / "one")
    shards = [tmp_path / str(number) for number in (1, 2, 3)]
    for number, folder in enumerate(shards, start=1):
        evaluate(by_attack(), chosen, out=folder, shard=Shard(number, 3))
    evaluate_by_fakes(by_attack(), chosen, tmp_path / "fakes", size=3, shard=Shard(1, 1))
    assert contents(tmp_path / "fakes") == contents(tmp_path / "one")
    partial = merge(shards[:2], tmp_path / "two")
    assert partial.missing
    evaluate(by_attack(), chosen, out=tmp_path / "two")
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    merged = merge(shards, tmp_path / "run")
    assert (merged.missing, merged.duplicates) == ((), 2)  # every shard makes both probes
    assert contents(tmp_path / "run") == contents(tmp_path / "one")
    assert lines(tmp_path / "run") == lines(tmp_path / "one")


def test_shards_merge_if_their_probes_differ_by_rounding_but_not_in_what_they_show(
    tmp_path: Path,
) -> None:
    def changed_probe(name: str, distance: float) -> Path:
        folder = tmp_path / name
        shutil.copytree(tmp_path / "2", folder)
        kept = []
        for line in (folder / JOURNAL).read_text().splitlines():
            record = json.loads(line)["record"]
            if record["kind"] == "probe" and record["defense"] != "static":
                record["permuted"]["distance"] = distance
            kept.append(json.dumps({"record": record, "sha256": digest(record)}))
        (folder / JOURNAL).write_text("\n".join(kept) + "\n")
        return folder

    chosen = Settings(n=8, batch_size=4, until="end")
    for number in (1, 2):
        evaluate(by_attack(), chosen, out=tmp_path / str(number), shard=Shard(number, 2))
    first = tmp_path / "1"
    merged = merge([first, changed_probe("rounded", 9.1e-8)], tmp_path / "run")
    assert (merged.missing, merged.duplicates, merged.rounded) == ((), 2, 1)
    assert load_run(tmp_path / "run").records == {
        **load_run(tmp_path / "2").records,
        **load_run(first).records,
    }
    with pytest.raises(ConflictError, match=r"probe/0/\w+/None\.permuted"):
        merge([first, changed_probe("moved", 0.5)], tmp_path / "refused")


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "a/b", "1/0", "-1/3", ""])
def test_invalid_shard_text_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="shard"):
        Shard.parse(text)


@given(st.integers(1, 9), st.integers(0, 40))
def test_shards_partition_all_items_evenly(of: int, count: int) -> None:
    parts = [Shard(number, of).of_all(range(count)) for number in range(1, of + 1)]
    assert sorted(item for part in parts for item in part) == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
