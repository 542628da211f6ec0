"""Sets of whole numbers, written as ranges."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dent.errors import ConfigError
from dent.support import ranges


@given(st.sets(st.integers(0, 60), min_size=1))
def test_written_numbers_are_read_back(numbers: set[int]) -> None:
    assert ranges.read(ranges.written(numbers)) == tuple(sorted(numbers))


def test_consecutive_numbers_are_written_as_ranges() -> None:
    assert ranges.written([600, *range(512), 602, 603]) == "0-511,600,602-603"


@pytest.mark.parametrize("text", ["", "3-", "5-3", "1,,2", "-1", "a", "0-99999999999", "٣"])
def test_invalid_ranges_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected numbers and ranges such as"):
        ranges.read(text)
