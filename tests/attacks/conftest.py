"""Drop kept ascents before every test, so that counts do not depend on other tests."""

import pytest

from dent.attacks.adaptive.static_ascents import forget


@pytest.fixture(autouse=True)
def _nothing_kept() -> None:
    forget()
