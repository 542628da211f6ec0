"""The style of the documentation site: its buttons can be read, in light and dark mode."""

from pathlib import Path

import material
import pytest

from tests.report.browser import Question, ask, needs_chromium
from tests.report.test_report_browser import CONTRAST

OWN = Path(__file__).parents[2] / "docs/stylesheets/site.css"
THEME = Path(material.__file__).parent / "templates/assets/stylesheets"


@needs_chromium
@pytest.mark.parametrize("scheme", ["default", "slate"])
def test_buttons_of_the_home_page_have_enough_contrast(scheme: str) -> None:
    theme = [next(THEME.glob(f"{name}.*.min.css")) for name in ("main", "palette")]
    style = "".join(path.read_text(encoding="utf-8") for path in (*theme, OWN))
    page = (
        f'<style>{style}</style><body data-md-color-scheme="{scheme}" '
        'data-md-color-primary="custom" data-md-color-accent="custom"><div class="md-typeset">'
        '<a class="md-button" href="#">Numbers</a> '
        '<a class="md-button md-button--primary" href="#">The board</a></div></body>'
    )
    found = ask({"it": Question(page, CONTRAST)})["it"]
    assert found["worst"][0] >= 4.5, found
