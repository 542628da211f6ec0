"""Numbers and sentences in CSV, JSON and Markdown, against an independent count of the journal."""

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dent.attacks.adaptive import NOT_AVAILABLE
from dent.evaluation import EvaluationResult
from dent.evaluation.results.intervals import wilson
from dent.evaluation.results.result import ChallengeSummary, DefenseResult, Dependence
from dent.evaluation.results.worst_case import MIN_CLUSTERS, paired
from dent.report import wording, write_report
from dent.report.formats import to_csv
from dent.report.limits import limits
from dent.report.loading import NamedRun, load_runs
from tests.report.conftest import letters_of

DOCS = Path(__file__).parents[2] / "docs" / "evaluation"
Counts = dict[tuple[str, str, str], tuple[int, int]]


@pytest.fixture(scope="module")
def counted(run_path: Path) -> Counts:
    """By (defense, kind, attack): the number of correct attacked members, and of all.

    If predictions were drawn several times, the number is the mean over the second half of the
    draws.
    """
    batches = json.loads((run_path / "plan.json").read_text())["batches"]
    counts: dict[tuple[str, str, str], tuple[float, int]] = {}
    for record in _units(run_path):
        batch = batches[record["batch"]]
        attacked = batch["attacked"]
        key = (record["defense"], record["kind"], record["attack"] or "")
        correct, total = counts.get(key, (0, 0))
        shares = _shares(record, batch["labels"][:attacked])
        counts[key] = (correct + sum(shares), total + attacked)
    return {key: (round(correct), total) for key, (correct, total) in counts.items()}


def _shares(record: Any, labels: Sequence[int]) -> list[float]:
    """Return the share of correct predictions for each attacked member."""
    draws = record["draws"]
    answers = draws[len(draws) // 2 :] or [record["served"]]
    return [
        sum(answer[at] == label for answer in answers) / len(answers)
        for at, label in enumerate(labels)
    ]


def _units(run_path: Path) -> Iterator[Any]:
    for line in (run_path / "journal.jsonl").read_text().splitlines():
        record = json.loads(line)["record"]
        if record["kind"] != "probe":
            yield record


@pytest.fixture(scope="module")
def rows(run_path: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    out = write_report([run_path], tmp_path_factory.mktemp("csv") / "r.csv")
    return list(csv.DictReader(io.StringIO(out.read_text())))


@pytest.fixture(scope="module")
def document(run_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = write_report([run_path], tmp_path_factory.mktemp("json") / "r.json")
    return json.loads(out.read_text())


def test_csv_has_every_count_of_the_journal(rows: list[dict[str, str]], counted: Counts) -> None:
    found = {
        (row["defense"], row["measure"], row["attack"]): row
        for row in rows
        if row["measure"] in {"natural", "attack", "transfer", "assembled"}
    }
    assert found.keys() == counted.keys()
    for key, (correct, total) in counted.items():
        row = found[key]
        assert (int(row["correct"]), int(row["total"])) == (correct, total), key
        assert float(row["value"]) == correct / total
        assert (float(row["low"]), float(row["high"])) == wilson(correct, total)


def test_csv_counts_mismatches_between_claims_and_submissions(
    rows: list[dict[str, str]], run_path: Path
) -> None:
    batches = json.loads((run_path / "plan.json").read_text())["batches"]
    claimed: dict[tuple[str, str], list[int]] = {}
    for record in _units(run_path):
        if record["kind"] == "attack":
            labels = batches[record["batch"]]["labels"]
            sums = claimed.setdefault((record["defense"], record["attack"]), [0, 0, 0])
            shares = _shares(record, labels)
            for fell, share in zip(record["claimed"], shares, strict=True):
                sums[0] += fell and share > 0.5
                sums[1] += not fell and share <= 0.5
                sums[2] += not fell
    assert any(sums[0] and sums[1] and sums[0] != sums[1] for sums in claimed.values())
    for row in rows:
        key = (row["defense"], row["attack"])
        if row["measure"] == "attack":
            shown = [int(row["claimed_but_served"]), int(row["served_wrong_unclaimed"])]
            assert shown == claimed[key][:2]
        elif row["measure"] == "claimed":
            assert int(row["correct"]) == claimed[key][2]


def test_csv_rows_carry_the_flags_of_their_defense(
    rows: list[dict[str, str]], result: EvaluationResult
) -> None:
    for row in rows:
        raised = [flag.name for flag in result.defenses[row["defense"]].raised]
        assert row["flags"] == "; ".join(raised)
    assert {row["flags"] for row in rows if row["defense"] == "dent"} == {
        "batch dependent; not as named"
    }
    noisy = {row["flags"] for row in rows if row["defense"] == "noisy"}
    assert all("randomized; " in flags for flags in noisy)


def test_csv_has_worst_case_difference_and_cost(
    rows: list[dict[str, str]], result: EvaluationResult
) -> None:
    by_key = {(row["defense"], row["measure"]): row for row in rows}
    for name, found in result.defenses.items():
        worst = by_key[name, "worst"]
        assert (int(worst["correct"]), worst["unit"]) == (
            found.worst.served.correct,
            found.worst.unit,
        )
        assert float(by_key[name, "cost"]["value"]) == found.timing["relative"]
        if found.difference is None:
            assert (name, "difference") not in by_key
            continue
        assert found.difference.interval is not None
        row = by_key[name, "difference"]
        assert float(row["value"]) == found.difference.value
        assert (float(row["low"]), float(row["high"])) == found.difference.interval
        assert int(row["only_static"]) == found.difference.only_static


def test_json_contains_the_result_and_the_csv_rows(
    document: Any, rows: list[dict[str, str]], result: EvaluationResult
) -> None:
    assert document["format"] == "dent-report"
    assert document["version"] == 1
    (run,) = document["runs"]
    assert EvaluationResult.model_validate(run["result"]) == result
    assert run["name"] == "first"
    assert run["limits"]
    plain = [
        {key: "" if value is None else str(value) for key, value in row.items()}
        for row in document["rows"]
    ]
    assert plain == rows
    assert {"batch dependent", "randomized"} <= document["flags"].keys()
    assert document["series"] == []


def test_markdown_has_every_count_of_the_journal(
    run_path: Path, counted: Counts, result: EvaluationResult
) -> None:
    letters = letters_of(result)
    assert letters["dent"] == "a,b"
    assert len(letters["noisy"]) > 1
    text = write_report([run_path], run_path.parent / "r.md").read_text()
    said = {
        "natural": "natural images",
        "attack": "{} through the defense",
        "on static": "{} on the model",
        "transfer": "{} transferred from static",
        "assembled": "assembled from the images that broke each member",
    }
    for (defense, kind, attack), (correct, total) in counted.items():
        section = text.partition(f"\n**{defense}**")[2].partition("\n**")[0]
        low, high = wilson(correct, total)
        mark = f" [{letters[defense]}]" if letters[defense] else ""
        number = f"{100 * correct / total:.1f}% [{100 * low:.1f}, {100 * high:.1f}]{mark}"
        where = "on static" if (defense, kind) == ("static", "attack") else kind
        line = f"| {said[where].format(attack)} | {number} |"
        assert line in section, (defense, line)


def test_markdown_states_limits_skipped_diagnostics_and_flags(run_path: Path) -> None:
    text = write_report([run_path], run_path.parent / "r.md").read_text()
    assert "No exact-gradient attack" in text
    assert "| not-run |" in text
    assert "- [a] **batch dependent**: " in text


@pytest.mark.parametrize(
    ("name", "chosen", "says", "silent"),
    [
        (
            None,
            {},
            "No exact-gradient attack (unrolled through all adaptation steps) and no attack",
            "",
        ),
        ("adaptive-unrolled", {}, "No attack on model space (GMSA) was run", "exact-gradient"),
        ("gmsa-avg", {"unrolled": False}, "No exact-gradient attack", ""),
        ("adaptive-stop-gradient", {}, "No exact-gradient attack", ""),
        ("gmsa-min", {}, "No exact-gradient attack", "model space"),
        ("gmsa-min", {"unrolled": True}, "", "known to break"),
    ],
)
def test_limits_name_only_the_kinds_of_attack_that_were_not_run(
    result: EvaluationResult, name: str | None, chosen: dict[str, Any], says: str, silent: str
) -> None:
    (first, *rest) = result.spec.attacks
    asked = (first.model_copy(update={"attack": name, "settings": chosen}), *rest)
    spec = result.spec.model_copy(update={"attacks": asked})
    said = " ".join(limits(result.model_copy(update={"spec": spec})))
    assert says in said
    assert not silent or silent not in said


def test_limits_state_that_custom_attacks_are_not_counted(
    result: EvaluationResult,
) -> None:
    (first, *rest) = result.spec.attacks
    asked = (first.model_copy(update={"attack": None, "name": "theirs:strong"}), *rest)
    spec = result.spec.model_copy(update={"attacks": asked})
    (said,) = (each for each in limits(result.model_copy(update={"spec": spec})) if "GMSA" in each)
    assert "was run, not counting custom attacks (theirs:strong" in said


def test_limits_name_the_diagnostics_that_were_not_run_on_a_defense(
    result: EvaluationResult,
) -> None:
    (said,) = (each for each in limits(result) if each.startswith("Diagnostics"))
    not_run = {
        item.name
        for name, defense in result.defenses.items()
        for item in defense.diagnostics
        if name != "static" and item.state == "not-run"
    }
    named, *more = said.removesuffix(".").rpartition(": ")[2].split(", and ")
    assert set(named.split(", ")) <= not_run
    assert len(named.split(", ")) == min(4, len(not_run))
    assert more == ([f"{len(not_run) - 4} more"] if len(not_run) > 4 else [])


def test_limits_state_how_many_samples_were_attacked(result: EvaluationResult) -> None:
    def said(samples: int, status: str) -> str:
        changed = result.model_copy(update={"samples": samples, "status": status})
        return " ".join(limits(changed))

    attacked = result.samples
    assert f"{attacked} samples were attacked. " in said(attacked, "complete")
    twice = 2 * attacked
    assert f"{attacked} of {twice} samples were attacked so far. " in said(twice, "partial")


def test_limits_of_a_challenged_run_speak_only_of_its_own_attacks(result: EvaluationResult) -> None:
    entry = ChallengeSummary(
        by="Ada",
        url=None,
        note=None,
        date="2026-11-28T00:00:00Z",
        digest="0" * 64,
        made_for="dent",
        attack=None,
        correct=1,
        total=2,
        lowered=1,
    )
    challenged = {
        name: found.model_copy(update={"challenges": (entry,) if name == "dent" else ()})
        for name, found in result.defenses.items()
    }
    said = " ".join(limits(result.model_copy(update={"defenses": challenged})))
    assert (
        "The run's own attacks include no exact-gradient attack (unrolled through all adaptation "
        "steps) and no attack on model space (GMSA), and what the challenges used is not known to "
        "the run. Attacks of this kind are known to break"
    ) in said
    assert "No exact-gradient attack" not in said


def test_limits_count_an_unavailable_attack_as_not_run(result: EvaluationResult) -> None:
    unrolled = result.spec.attacks[0].model_copy(update={"attack": "adaptive-unrolled"})
    spec = result.spec.model_copy(update={"attacks": (unrolled, *result.spec.attacks[1:])})
    note = f"{NOT_AVAILABLE}unrolled: Noisy.adapt has no differentiable"

    def said(spared: tuple[str, ...]) -> list[str]:
        defenses = {
            name: found.model_copy(
                update={
                    "attacks": tuple(
                        each.model_copy(update={"notes": (note,)})
                        if name in spared and each.attack == unrolled.name
                        else each
                        for each in found.attacks
                    )
                }
            )
            for name, found in result.defenses.items()
        }
        changed = result.model_copy(update={"spec": spec, "defenses": defenses})
        return [each for each in limits(changed) if "was run" in each and each.startswith("No ")]

    assert len(result.defenses) == 4  # static and three others
    (none,) = said(())
    assert none.startswith("No attack on model space (GMSA) was run. ")
    some = said(("noisy", "dent"))
    exact = "No exact-gradient attack (unrolled through all adaptation steps)"
    assert [each.partition(".")[0] for each in some] == [
        f"{exact} was run on dent, noisy",
        "No attack on model space (GMSA) was run",
    ]
    (every,) = said(tuple(result.defenses))
    assert every.startswith(f"{exact} and no attack on model space (GMSA) was run. ")


def test_rows_of_a_markdown_table_have_equally_many_cells(
    run_path: Path, eps_sweep: Path, tmp_path: Path
) -> None:
    text = write_report([run_path, eps_sweep], tmp_path / "r.md").read_text()
    tables = re.findall(r"(?:^\|.*\|\n)+", text, flags=re.MULTILINE)
    assert len(tables) > 10
    for table in tables:
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(widths) == 1, table


def test_csv_escapes_names_that_look_like_formulas(run_path: Path) -> None:
    (run,) = load_runs([run_path])
    spec = run.loaded.run.spec
    evil = spec.model_copy(update={"model": spec.model.model_copy(update={"name": "=1+1"})})
    record = run.loaded.run.model_copy(update={"spec": evil})
    text = to_csv([NamedRun("@SUM", replace(run.loaded, run=record))])
    row = next(csv.DictReader(io.StringIO(text)))
    assert (row["run"], row["model"]) == ("'@SUM", "'=1+1")
    assert any(float(row["low"] or 0) < 0 for row in csv.DictReader(io.StringIO(text)))


def test_docs_name_every_csv_column_measure_and_json_key(
    document: Any, rows: list[dict[str, str]]
) -> None:
    docs = (DOCS / "reading-a-report.md").read_text(encoding="utf-8")
    named = set(re.findall(r"(?<!`)`([^`\n]+)`(?!`)", docs))
    keys = {*document, *document["runs"][0], *rows[0], *(row["measure"] for row in rows)}
    assert keys - named == set()


def test_verdict_sentences_state_whether_each_doubt_is_open_or_settled() -> None:
    said = {}
    for path in sorted((DOCS / "results").glob("*-dynamic.json")):
        result = EvaluationResult.model_validate_json(path.read_bytes())
        for found in result.defenses.values():
            gates = found.verdict.gates if found.verdict else ()
            sentences = wording.verdict(found.verdict)
            for gate in gates:
                state = "Open" if gate.open else "Settled"
                assert f"{state} doubt ({gate.name}): {gate.sentence}" in sentences
                said[state] = gate.name
    assert said.keys() == {"Open", "Settled"}
    assert "| raised | closed when |" in (DOCS / "suite.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("batches", "says"),
    [
        (
            1,
            "A bootstrap over batches needs 8 batches; this run has 1.",
        ),
        (8, "It assumes that batches are independent; members of one may not be."),
    ],
)
def test_interval_sentence_states_the_bootstrap_and_its_limits(batches: int, says: str) -> None:
    rights = dict.fromkeys(range(batches), (1.0, 0.0))
    found = paired(rights, rights, independent=False, static_by_sample=False, seed=0)
    few = batches if batches < MIN_CLUSTERS else None
    assert wording.interval_of(found, few).endswith(says)


@pytest.mark.parametrize(
    ("batches", "dependent", "status", "few"),
    [
        (7, True, "complete", 7),
        (8, True, "complete", None),
        (7, False, "complete", None),
        (7, True, "partial", None),
    ],
)
def test_too_few_batches_are_counted_in_finished_runs_of_dependent_members(
    batches: int, dependent: bool, status: str, few: int | None
) -> None:
    result = EvaluationResult.model_construct(batches=batches, status=status)
    defense = DefenseResult.model_construct(
        dependence=Dependence(declared=dependent, measured=None)
    )
    assert wording.few_batches(result, defense) == few
