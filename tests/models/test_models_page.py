"""The models page matches the model cards."""

import re
from pathlib import Path

import pytest

from dent import models
from dent.models.info import by_images
from dent.models.robustbench_source import PAPER
from dent.models.shipped_source import ShippedModels
from tests.models.conftest import lay_shipped
from tools.tabulate_shipped import BEGIN, END, rewrite, table

PAGE = Path(__file__).parents[2] / "docs" / "models.md"


def test_the_models_page_is_up_to_date_with_the_cards() -> None:
    """To update the page: `python tools/tabulate_shipped.py docs/models.md`."""
    page = PAGE.read_text()
    assert rewrite(page, ShippedModels()) == page


def test_the_table_has_one_row_per_card(tmp_path: Path) -> None:
    lay_shipped(tmp_path, "b-linf")
    lay_shipped(tmp_path, "a", threat=None, accuracies=[])
    rows = table(ShippedModels(tmp_path)).splitlines()
    assert len(rows) == 4
    assert rows[2].startswith("| `a` | cifar10 | nominal | 0.2 MB |  | not measured |")
    assert rows[3].endswith("| 100 | 73.0% | PGD-20 at linf 8/255: 44.0% |")


def test_accuracies_on_different_numbers_of_images_get_separate_rows(tmp_path: Path) -> None:
    """In one row, robust accuracy could exceed the clean accuracy on other images."""
    measured = [(80, 100, None), (9, 10, None), (7, 10, "PGD-20"), (4, 5, "square")]
    lay_shipped(
        tmp_path, "a",
        accuracies=[
            {"correct": correct, "total": total, "threat": attack and "linf 8/255",
             "attack": attack, "provenance": "a test"}
            for correct, total, attack in measured
        ],
    )  # fmt: skip
    rows = [row.split(" | ")[-3:] for row in table(ShippedModels(tmp_path)).splitlines()[2:]]
    assert rows == [
        ["100", "80.0%", "not attacked |"],
        ["10", "90.0%", "PGD-20 at linf 8/255: 70.0% |"],
        ["5", "not measured", "square at linf 8/255: 80.0% |"],
    ]


def test_shipped_robust_accuracies_have_a_clean_accuracy_on_the_same_images() -> None:
    for entry in ShippedModels().entries():
        for one in by_images(entry.accuracies):
            assert one.natural is not None, (entry.name, one.total)
            assert all(each.correct <= one.natural.correct for each in one.attacked)
        attacks = [{a.attack for a in one.attacked} for one in by_images(entry.accuracies)]
        assert all("PGD-20" in found for found in attacks if "AutoAttack (standard)" in found)


def test_rewrite_changes_only_the_text_between_the_markers(tmp_path: Path) -> None:
    lay_shipped(tmp_path, "b-linf")
    page = f"before\n{BEGIN}\nold\nolder\n{END}\nafter\n"
    new = rewrite(page, ShippedModels(tmp_path))
    assert new.startswith(f"before\n{BEGIN}\n| name")
    assert new.endswith(f"|\n{END}\nafter\n")
    assert "old" not in new
    with pytest.raises(ValueError, match="has no lines"):
        rewrite("nothing", ShippedModels(tmp_path))


def test_the_page_lists_the_paper_models_with_their_registered_values() -> None:
    rows = re.findall(
        r"\| `(robustbench/\S+)` \| (.*) \| ([\d.]+)% \| ([\d.]+)% \|", PAGE.read_text()
    )
    assert {name for name, *_ in rows} == set(PAPER)
    for name, architecture, *shown in rows:
        known = models.info(name)
        assert architecture.removesuffix(", 288 pixels") == known.architecture
        assert shown == [f"{100 * each.value:.2f}" for each in known.accuracies]
