"""Open pages in headless Chromium and run scripts in them."""

import html
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
CHROMIUM = next((found for name in _NAMES if (found := shutil.which(name))), None)

needs_chromium = pytest.mark.skipif(
    CHROMIUM is None,
    reason="no Chromium here: apt-get install chromium (CI installs it)",
)


@dataclass(frozen=True)
class Question:
    """A script to run in a page.

    Attributes:
        page: The HTML of the page.
        script: The body of a JavaScript function with the parameters `win` and `doc`, the window
            and document of the page. It must return a value that JSON can represent.
        width: Width of the page in pixels. Every page is shown in a frame, since a headless window
            cannot be as narrow as a phone.
    """

    page: str
    script: str
    width: int = 1200


def ask(questions: Mapping[str, Question], *, dark: bool = False) -> dict[str, Any]:
    """Run every script in its page and return the values by name.

    All scripts run in one browser, since it is slow to start.

    Args:
        questions: The scripts and pages by name.
        dark: Whether the browser prefers the dark color scheme.
    """
    frames = "".join(
        f'<iframe width="{asked.width}" height="900" style="border:0" '
        f'srcdoc="{html.escape(asked.page)}"></iframe>'
        for asked in questions.values()
    )
    functions = ",".join(f"(win, doc) => {{ {asked.script} }}" for asked in questions.values())
    wrapper = f"""<!DOCTYPE html><meta charset="utf-8">{frames}<pre id="answer"></pre><script>
addEventListener("load", () => {{
  const asked = [{functions}], frames = document.querySelectorAll("iframe");
  document.getElementById("answer").textContent = JSON.stringify(asked.map((ask, at) => {{
    try {{ return ask(frames[at].contentWindow, frames[at].contentDocument); }}
    catch (error) {{ return `failed: ${{error}}`; }}
  }}));
}});
</script>"""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "page.html"
        path.write_text(wrapper, encoding="utf-8")
        dom = _run(path, Path(folder) / "profile", dark=dark)
    answers = dom.rpartition('<pre id="answer">')[2].partition("</pre>")[0]
    return dict(zip(questions, json.loads(html.unescape(answers)), strict=True))


def _run(path: Path, profile: Path, *, dark: bool) -> str:
    command = [
        str(CHROMIUM),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        f"--user-data-dir={profile}",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
        "--window-size=1700,1000",
        "--dump-dom",
        path.as_uri(),
    ]
    environment = {**os.environ, "DBUS_SESSION_BUS_ADDRESS": "disabled:"}
    done = subprocess.run(
        command, capture_output=True, timeout=90, check=True, text=True, env=environment
    )
    return done.stdout
