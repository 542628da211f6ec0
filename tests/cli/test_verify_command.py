"""Test `dent verify`: which attacks it reruns, and that a record cannot make it read files."""

import json
from pathlib import Path

import pytest

from dent import ConfigError, Dent, DentConfig
from dent.evaluation import RecordedRun, Settings, Subject, evaluate, load_run
from dent.evaluation.records.spec import DefenseSpec
from dent.evaluation.restoration import restored_defense
from tests.cli.here import dent
from tests.evaluation.subjects import make_model, make_subject


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("verify") / "run"
    evaluate(make_subject(), Settings(n=8, batch_size=8), out=path)
    return path


@pytest.fixture
def restored(monkeypatch: pytest.MonkeyPatch) -> None:
    def restore(*_: object, **__: object) -> Subject:
        return make_subject()

    monkeypatch.setattr("dent.evaluation.restore", restore)


@pytest.mark.usefixtures("restored")
def test_verify_status_counts_the_attacks_that_were_rerun(finished: Path) -> None:
    plain = dent("verify", str(finished))
    assert plain.code == 0
    assert "run: records verified, attacks not re-run" in plain.out
    some = dent("verify", str(finished), "--reattack", "2", "--reattack-nonce", "17")
    assert some.code == 0, some.out
    assert "run: verified, 2 of 4 attacks re-run" in some.out
    told = json.loads(dent("verify", str(finished), "--reattack", "all", "--json").out)
    assert (told["status"], told["attacks"]) == ("verified", "all re-run")
    assert told["reattacked"]["same"] == told["reattacked"]["of"] == 4
    assert told["reattacked"]["nonce"] is None


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--reattack", "2"), "--reattack 2 needs --reattack-nonce TEXT"),
        (("--reattack-nonce", "n"), "add --reattack K"),
        (("--reattack", "all", "--reattack-nonce", "n"), "leave out --reattack-nonce"),
        (("--reattack", "few", "--reattack-nonce", "n"), "a number or all, got 'few'"),
        (("--reattack", "0", "--reattack-nonce", "n"), "at least 1"),
        (("--reattack", "all", "--records-only"), "leave out --records-only"),
    ],
)
def test_invalid_reattack_and_nonce_options_are_refused(
    options: tuple[str, ...], says: str, finished: Path
) -> None:
    refused = dent("verify", str(finished), *options)
    assert (refused.code, refused.out) == (2, "")
    assert says in refused.err


def with_defense(recorded: RecordedRun, name: str, kind: str) -> DefenseSpec:
    return recorded.run.spec.defenses[1].model_copy(update={"name": name, "kind": kind})


@pytest.mark.parametrize("name", ["{}/mine.json", "code:{}/mine.json", "{}/mine.JSON"])
def test_restoring_a_defense_reads_no_file_named_by_the_record(
    name: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.json").write_text('{"steps": 1}')
    spec = with_defense(load_run(finished), name.format(tmp_path), "other.Defense")

    def opened(self: Path, *_: object, **__: object) -> str:
        pytest.fail(f"{self} was read")

    monkeypatch.setattr(Path, "read_text", opened)
    with pytest.raises(ConfigError, match="cannot be restored from its record"):
        restored_defense(spec, make_model())


def test_dent_configuration_is_restored_from_the_record(finished: Path) -> None:
    spec = with_defense(load_run(finished), "mine", "dent.defense.Dent")
    made = restored_defense(spec, make_model())
    assert isinstance(made, Dent)
    assert made.config == DentConfig(steps=2, lr=0.01)
