"""Attacks count what they ask: no test finds what another one computed."""

import pytest

from dent.attacks.adaptive.static_ascents import forget


@pytest.fixture(autouse=True)
def _nothing_kept() -> None:
    forget()
