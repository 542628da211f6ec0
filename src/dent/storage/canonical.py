"""Canonical JSON text and digest of a value, and the base class of all records."""

import hashlib
import json
from typing import Any

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """Base of what is written to a run folder: frozen, no unknown keys, no NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return self.model_dump(mode="json")


def canonical(value: Any) -> str:
    """Return JSON text that is the same for equal values: sorted keys, no spaces, no NaN."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def digest(value: Any) -> str:
    """Return the SHA-256 (hex) of a JSON value's canonical text."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def without_timing(value: Any) -> Any:
    """Return a JSON value without any `timing`: two runs of an evaluation agree in the rest."""
    return _without(value, "timing")


def without_wording(value: Any) -> Any:
    """Return a JSON value without any `sentence`: versions of torch-dent agree in the rest."""
    return _without(value, "sentence")


def without_rulings(value: Any) -> Any:
    """Return a JSON value without the parts that depend on the rules of a torch-dent version.

    These are the rulings, the kinds of attacks, and the statistics that they rest on. Counts, worst
    cases and the values of differences remain.
    """
    rulings = ("verdict", "diagnostics", "rules", "decided", "undetermined")
    return _without(value, *rulings, "interval", "method", "assumes", "black_box", "carried")


_NAMED = frozenset({"after", "apart", "by", "claimed_after", "defenses", "status", "views"})
"""Keys whose values, if they are objects, have names from the run as keys."""
_KEPT = "spec"
"""Key of a specification. It is kept as it is, because its settings have keys of their own."""


def _without(value: Any, *names: str, named: bool = False) -> Any:
    """Return a JSON value without some keys. If `named`, the keys are names, which all remain."""
    if isinstance(value, list):
        return [_without(item, *names) for item in value]
    if not isinstance(value, dict):
        return value
    if named:
        return {key: _without(item, *names) for key, item in value.items()}
    return {
        key: item if key == _KEPT else _without(item, *names, named=key in _NAMED)
        for key, item in value.items()
        if key not in names
    }
