"""Test that the issue templates ask for what the board needs."""

import json
from pathlib import Path
from typing import Any

import yaml

from dent.evaluation.records.schema import ChallengeRecord

ROOT = Path(__file__).parents[2]
TEMPLATES = ROOT / ".github" / "ISSUE_TEMPLATE"
FILLED_IN = {"schema_version", "identity", "manifest", "images"}
"""Fields of a submission that the evaluation gives, so nobody who could not run it is asked."""


def template(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((TEMPLATES / name).read_text())
    return loaded


def fields(name: str) -> dict[str, dict[str, Any]]:
    """Return the fields of a template by id; the id of a repeated field would be lost."""
    asked = [field for field in template(name)["body"] if field["type"] != "markdown"]
    by_id = {field["id"]: field for field in asked}
    assert len(by_id) == len(asked)
    return by_id


def required(name: str) -> set[str]:
    return {
        id_ for id_, each in fields(name).items() if each.get("validations", {}).get("required")
    }


def test_new_defense_asks_for_every_field_of_a_submission() -> None:
    schema = json.loads((ROOT / "docs" / "reference" / "submission.schema.json").read_text())
    asked = fields("new-defense.yml")
    assert asked.keys() == schema["properties"].keys() - FILLED_IN
    own_code = {"repository", "commit"}
    assert required("new-defense.yml") == {*schema["required"], *own_code, "known_attacks"}
    for name in ("lock", "weights"):
        assert "URL and SHA-256" in asked[name]["attributes"]["description"]


def test_new_attack_asks_for_the_images_and_the_name_of_their_maker() -> None:
    asked = fields("new-attack.yml")
    assert "by" in ChallengeRecord.model_fields
    assert {"row", "images", "by", "how"} == required("new-attack.yml") <= asked.keys()
    assert "URL and SHA-256" in asked["images"]["attributes"]["description"]
    rules = asked["rules"]["attributes"]["options"]
    assert all(rule["required"] for rule in rules)
    assert (
        f"*{template('new-attack.yml')['name']}*"
        in (ROOT / "docs" / "evaluation" / "challenge.md").read_text()
    )


def test_correction_asks_for_the_row_and_the_error() -> None:
    assert required("correction.yml") == {"row", "wrong"}
