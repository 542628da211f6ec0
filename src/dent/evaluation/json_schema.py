"""The JSON Schema of all records, for programs in other languages.

`python -m dent.evaluation.json_schema docs/reference/record.schema.json` writes it. A test checks
that the file is up to date.
"""

import json
import sys
from pathlib import Path
from typing import Any, Final

from pydantic.json_schema import models_json_schema

from dent.evaluation.records.folder import PLAN, RESULT, RUN
from dent.evaluation.records.journal import CHALLENGES, JOURNAL
from dent.evaluation.records.plan import Plan
from dent.evaluation.records.schema import ChallengeLine, Line, RunRecord
from dent.evaluation.records.spec import SCHEMA_VERSION
from dent.evaluation.records.sweep import SWEEP, SweepRecord
from dent.evaluation.results.result import EvaluationResult
from dent.evaluation.verification.verify import Verification

FILES: Final = {
    RUN: RunRecord,
    PLAN: Plan,
    f"{JOURNAL} (each line)": Line,
    f"{CHALLENGES} (each line)": ChallengeLine,
    RESULT: EvaluationResult,
    SWEEP: SweepRecord,
    "dent verify --json": Verification,
}


def schema() -> dict[str, Any]:
    """Return the schema: the type of each file in `files`, and all kinds of records in `$defs`."""
    models: list[Any] = [(model, "serialization") for model in FILES.values()]
    by_model, definitions = models_json_schema(models)
    references: dict[Any, Any] = dict(by_model)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "torch-dent run folder",
        "version": SCHEMA_VERSION,
        "files": {name: references[model, "serialization"] for name, model in FILES.items()},
        **definitions,
    }


def text() -> str:
    """Return the schema as the text of the file."""
    return json.dumps(schema(), indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(text(), encoding="utf-8")
