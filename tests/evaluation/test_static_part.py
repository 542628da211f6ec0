"""Runs of several defenses share the records of the static model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dent.attacks import make
from dent.attacks.adaptive.static_ascents import StaticAscent, forget
from dent.errors import ConfigError
from dent.evaluation import Settings, Subject, evaluate, load_run, suite, verify
from dent.evaluation.records.folder import ASCENTS
from dent.evaluation.records.spec import STATIC
from dent.evaluation.static_part import find_static_part
from dent.evaluation.subject import prepare
from dent.storage.canonical import without_timing
from dent.storage.errors import SpecMismatchError
from dent.threat import ThreatModel
from tests.attacks.known_defenses import Identity
from tests.evaluation.subjects import SMALL, make_subject
from tests.evaluation.test_evaluation_suite_answers import EPS, dataset, linear

SETTINGS = Settings(n=8, batch_size=4)


class Shifted(Identity):
    """Predicts like its model, with a small constant added to one logit."""

    def predict(self, x: torch.Tensor, adaptation: Any) -> torch.Tensor:
        return super().predict(x, adaptation) + torch.tensor([0.2, 0.0, 0.0, 0.0])


def subject(defense: type[Identity], model: nn.Module | None = None, eps: str = EPS) -> Subject:
    model = model or linear()
    return Subject(model, dataset(), {"it": defense(model)}, suite(), ThreatModel("linf", eps))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "identity"
    evaluate(subject(Identity), SETTINGS, out=out)
    return out


def records(run: Path) -> dict[str, Any]:
    return {key: without_timing(each.to_json()) for key, each in load_run(run).records.items()}


def test_run_with_reused_static_records_equals_a_run_that_computes_them(
    source: Path, tmp_path: Path
) -> None:
    whole, taken = tmp_path / "whole", tmp_path / "taken"
    evaluate(subject(Shifted), SETTINGS, out=whole)
    evaluate(subject(Shifted), SETTINGS, out=taken, static_from=source)
    assert records(taken) == records(whole)
    static = [key for key, each in load_run(taken).records.items() if each.defense == STATIC]
    assert len(static) > 10
    original = load_run(source)
    for key in static:  # even the times are equal: they were not computed again
        assert load_run(taken).records[key] == original.records[key]
    sessions = load_run(taken).run.sessions
    assert original.run.sessions[0] in sessions
    assert len(sessions) == len(original.run.sessions) + 1
    checked = verify(taken, subject=subject(Shifted))
    assert checked.status == "verified", checked.checks


def test_run_that_copies_every_record_is_complete(tmp_path: Path) -> None:
    alone = make_subject({})
    evaluate(make_subject(), SMALL, out=tmp_path / "source")
    evaluate(alone, SMALL, out=tmp_path / "run", static_from=tmp_path / "source")
    assert load_run(tmp_path / "run").run.status == "complete"


def test_run_that_was_killed_after_its_last_unit_becomes_complete(tmp_path: Path) -> None:
    evaluate(make_subject({}), SMALL, out=tmp_path)
    run = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps(run | {"status": "running"}))
    evaluate(make_subject({}), SMALL, out=tmp_path)
    assert load_run(tmp_path).run.status == "complete"


def test_resumed_run_accepts_static_records_and_completes(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "begun"

    def stop(state: Any) -> None:
        if state.done >= 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(subject(Shifted), SETTINGS, out=out, progress=stop)
    begun = load_run(out).records
    evaluate(subject(Shifted), SETTINGS, out=out, static_from=source)
    evaluate(subject(Shifted), SETTINGS, out=out, static_from=source)  # nothing is missing anymore
    resumed, original = load_run(out), load_run(source).records
    assert resumed.result.status == "complete"
    copied = [
        key
        for key, record in resumed.records.items()
        if record.defense == STATIC and key not in begun
    ]
    assert copied
    for key in copied:  # even the times are equal: they were not computed again
        assert resumed.records[key] == original[key]


def test_only_a_run_of_the_same_static_model_and_batches_is_found(
    source: Path, tmp_path: Path
) -> None:
    def found(subject: Subject, batches: Settings = SETTINGS) -> Path | None:
        plan = prepare(subject, batches).plan
        return find_static_part(prepare(subject, SETTINGS).spec, plan, [tmp_path / "none", source])

    assert found(subject(Shifted)) == source
    assert found(subject(Shifted, eps="0.01")) is None
    assert found(subject(Shifted, linear().double())) is None
    assert found(subject(Shifted), Settings(n=8, batch_size=2)) is None


@pytest.mark.parametrize(
    ("other", "settings", "named"),
    [
        ({"eps": "0.01"}, SETTINGS, "threat.eps"),
        ({}, Settings(n=8, batch_size=8), "settings.batch_size"),
        ({}, Settings(n=8, batch_size=4, seed=1), "settings.seed"),
    ],
)
def test_static_records_of_another_evaluation_are_refused(
    source: Path, tmp_path: Path, other: dict[str, Any], settings: Settings, named: str
) -> None:
    with pytest.raises(SpecMismatchError, match=named):
        evaluate(subject(Shifted, **other), settings, out=tmp_path / "run", static_from=source)
    assert not load_run(tmp_path / "run").records


def test_static_ascents_are_reused_from_the_source_run(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert list((source / ASCENTS).iterdir())
    forget()
    with monkeypatch.context() as patched:
        patched.setattr(StaticAscent, "_ascend", not_again)
        evaluate(subject(Shifted), SETTINGS, out=tmp_path / "taken", static_from=source)
    assert not (tmp_path / "taken" / ASCENTS).exists()
    forget()
    drop = Settings(n=8, batch_size=4, tensors="drop")
    evaluate(subject(Shifted), drop, out=tmp_path / "dropped")
    assert not (tmp_path / "dropped" / ASCENTS).exists()


def not_again(*_: Any) -> None:
    raise AssertionError("computed again")


def test_static_records_are_accepted_if_only_redundant_attacks_are_reordered(
    source: Path, tmp_path: Path
) -> None:
    spec = load_run(source).run.spec
    redundant = [attack for attack in suite() if attack.name in spec.same_on_static]
    assert len(redundant) > 2
    others = [attack for attack in suite() if attack not in redundant]
    model = linear()
    threat = ThreatModel("linf", EPS)
    shifted = {"it": Shifted(model)}
    reordered = Subject(model, dataset(), shifted, [*others, *redundant], threat)
    evaluate(reordered, SETTINGS, out=tmp_path / "run", static_from=source)
    assert load_run(tmp_path / "run").result.status == "complete"
    other = Subject(model, dataset(), shifted, [*others[::-1], *redundant], threat)
    with pytest.raises(SpecMismatchError, match="attacks"):
        evaluate(other, SETTINGS, out=tmp_path / "other", static_from=source)


def test_static_records_of_another_model_are_refused(source: Path, tmp_path: Path) -> None:
    model = linear()
    with torch.no_grad():
        next(model.parameters()).add_(0.01)
    with pytest.raises(SpecMismatchError, match="weights"):
        evaluate(subject(Shifted, model), SETTINGS, out=tmp_path / "run", static_from=source)


def test_run_until_the_end_accepts_static_records_of_a_run_until_decided(
    source: Path, tmp_path: Path
) -> None:
    to_the_end = Settings(n=8, batch_size=4, until="end")
    evaluate(subject(Shifted), to_the_end, out=tmp_path / "end", static_from=source)
    assert load_run(tmp_path / "end").result.status == "complete"


def test_static_from_without_an_output_folder_or_a_static_model_is_refused(
    source: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="give out"):
        evaluate(subject(Shifted), SETTINGS, static_from=source)
    model = linear()
    attacks = [make("pgd", iterations=2)]
    alone = Subject(model, dataset(), {"it": Shifted(model)}, attacks, ThreatModel("linf", EPS))
    without = Settings(n=8, batch_size=4, static=False, transfer=False)
    with pytest.raises(ConfigError, match="no static model"):
        evaluate(alone, without, out=tmp_path / "run", static_from=source)
