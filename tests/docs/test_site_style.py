"""The style of the documentation site: its buttons can be read, in light and dark mode."""

from pathlib import Path

import material
import pytest

from dent.board.listing import list_rows
from dent.board.plots import to_plots
from tests.report.browser import Question, ask, needs_chromium
from tests.report.test_report_browser import CONTRAST
from tools.docs_hooks import plots_css

ROOT = Path(__file__).parents[2]
OWN = ROOT / "docs/stylesheets/site.css"
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


@needs_chromium
def test_plots_of_the_home_page_fit_beside_each_other_and_on_a_phone() -> None:
    theme = next(THEME.glob("main.*.min.css")).read_text(encoding="utf-8")
    style = theme + plots_css() + OWN.read_text(encoding="utf-8")
    plots = to_plots(list_rows(ROOT / "board"), "board/index.html")
    page = f'<style>{style}</style><body style="margin:0"><div class="md-typeset">{plots}</div>'
    script = """
        const figures = [...doc.querySelectorAll("figure")].map((it) => it.getBoundingClientRect());
        const caption = win.getComputedStyle(doc.querySelector("figcaption"));
        const line = win.getComputedStyle(doc.querySelector(".whisker"));
        return {tops: figures.map((each) => each.top), widths: figures.map((each) => each.width),
            all: doc.documentElement.scrollWidth, align: caption.textAlign, stroke: line.stroke};
    """
    found = ask({"wide": Question(page, script), "phone": Question(page, script, width=390)})
    assert found["wide"]["tops"][0] == found["wide"]["tops"][1]
    assert found["phone"]["tops"][0] < found["phone"]["tops"][1]
    assert found["phone"]["widths"][0] == found["phone"]["widths"][1] <= 390
    assert found["phone"]["all"] <= 390
    assert found["wide"]["align"] in ("left", "start")
    assert found["wide"]["stroke"] != "none"
