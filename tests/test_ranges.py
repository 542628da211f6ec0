"""Whole numbers as ranges."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dent.errors import ConfigError
from dent.support import ranges


@given(st.sets(st.integers(0, 60), min_size=1))
def test_what_is_written_is_read(numbers: set[int]) -> None:
    assert ranges.read(ranges.written(numbers)) == tuple(sorted(numbers))


def test_ranges_are_short() -> None:
    assert ranges.written([600, *range(512), 602, 603]) == "0-511,600,602-603"


@pytest.mark.parametrize("text", ["", "3-", "5-3", "1,,2", "-1", "a", "0-99999999999", "٣"])
def test_what_are_no_ranges_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected numbers and ranges such as"):
        ranges.read(text)
