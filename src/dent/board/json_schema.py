"""The JSON Schema of a submission, for editors and other languages.

`python -m dent.board.json_schema docs/reference/submission.schema.json` writes it. A test checks
that the file is up to date.
"""

import json
import sys
from pathlib import Path

from dent.board.submission import RowSubmission


def text() -> str:
    """Return the text of the schema file."""
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **RowSubmission.model_json_schema(),
    }
    return json.dumps(schema, indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(text(), encoding="utf-8")
