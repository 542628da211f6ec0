"""Write the JSON Schemas of records and submissions, for programs in other languages.

`python tools/json_schema.py` writes docs/reference/record.schema.json and
docs/reference/submission.schema.json. Tests check that both are up to date.
"""

import json
from pathlib import Path
from typing import Any, Final

from pydantic.json_schema import models_json_schema

from dent.board.submission import RowSubmission
from dent.evaluation.records.folder import PLAN, RESULT, RUN
from dent.evaluation.records.journal import CHALLENGES, JOURNAL
from dent.evaluation.records.plan import Plan
from dent.evaluation.records.schema import ChallengeLine, Line, RunRecord
from dent.evaluation.records.spec import SCHEMA_VERSION
from dent.evaluation.records.sweep import SWEEP, SweepRecord
from dent.evaluation.results.result import EvaluationResult
from dent.evaluation.verification.outcome import Verification

FOLDER: Final = Path(__file__).parents[1] / "docs" / "reference"
FILES: Final = {
    RUN: RunRecord,
    PLAN: Plan,
    f"{JOURNAL} (each line)": Line,
    f"{CHALLENGES} (each line)": ChallengeLine,
    RESULT: EvaluationResult,
    SWEEP: SweepRecord,
    "dent verify --json": Verification,
}
_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"


def of_records() -> dict[str, Any]:
    """Return the schema: the type of each file in `files`, and all kinds of records in `$defs`."""
    models: list[Any] = [(model, "serialization") for model in FILES.values()]
    by_model, definitions = models_json_schema(models)
    references: dict[Any, Any] = dict(by_model)
    return {
        "$schema": _DIALECT,
        "title": "torch-dent run folder",
        "version": SCHEMA_VERSION,
        "files": {name: references[model, "serialization"] for name, model in FILES.items()},
        **definitions,
    }


def of_submissions() -> dict[str, Any]:
    """Return the schema of a row's `submission.json`."""
    return {"$schema": _DIALECT, **RowSubmission.model_json_schema()}


def texts() -> dict[str, str]:
    """Return the text of each schema file, by its name."""
    schemas = {
        "record.schema.json": of_records(),
        "submission.schema.json": of_submissions(),
    }
    return {
        name: json.dumps(schema, indent=1, sort_keys=True) + "\n"
        for name, schema in schemas.items()
    }


def main() -> None:
    """Write the files."""
    for name, text in texts().items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
