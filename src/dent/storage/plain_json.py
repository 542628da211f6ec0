"""Read untrusted JSON: limited nesting, unique keys, finite numbers."""

import json
import math
from typing import Any, Final

from pydantic import ValidationError

DEEPEST: Final = 64
"""Largest number of nested lists and objects; records of torch-dent have about a dozen."""
_SHOWN: Final = 120


def parse(content: bytes) -> Any:
    """Read one JSON value.

    Raises:
        ValueError: The content is not JSON, is nested deeper than `DEEPEST`, has a key twice (two
            parsers could read it differently), or has a number that is not finite.
    """
    try:
        value = json.loads(
            content, object_pairs_hook=_once, parse_constant=_not_finite, parse_float=_finite
        )
    except RecursionError:
        raise ValueError(f"nested deeper than {DEEPEST}") from None
    if content.count(b"[") + content.count(b"{") > DEEPEST:  # else it is not that deep
        _refuse_depth(value)
    return value


def problem_of(error: ValidationError) -> str:
    """Return the first problem that validation found in a record, shortened to one line."""
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{_short('.'.join(map(str, first['loc'])))}: {_short(first['msg'])}"


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _refuse_depth(value: Any) -> None:
    level = [value]
    for _ in range(DEEPEST):
        level = [
            item
            for node in level
            if isinstance(node, dict | list)
            for item in (node.values() if isinstance(node, dict) else node)
        ]
    if any(isinstance(node, dict | list) for node in level):
        raise ValueError(f"nested deeper than {DEEPEST}")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        raise ValueError("a key is there twice")
    return mapping


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{_short(text)} is beyond every float")
    return value


def _not_finite(text: str) -> float:
    raise ValueError(f"{text} is not a number of JSON")
