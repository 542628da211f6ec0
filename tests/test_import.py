"""`import dent` is as light as importing torch."""

import json
import subprocess
import sys

SCRIPT = """
import json, sys
import torch
before = set(sys.modules)
import dent
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def test_import_loads_torch_and_the_standard_library_alone() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=300
    )
    loaded = {name.split(".")[0] for name in json.loads(done.stdout)}
    assert "dent" in loaded
    strange = loaded - set(sys.stdlib_module_names) - {"dent", "torch"}
    assert not strange
