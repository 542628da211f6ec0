"""The attack in docs/evaluation/adding-an-attack.md does what the page says of it."""

import re
from pathlib import Path
from typing import Any

import pytest

from dent import Dent, DentConfig
from dent.attacks import Attack
from dent.errors import ConfigError
from dent.evaluation import Settings, estimate, evaluate
from tests.evaluation.subjects import make_model, make_subject

PAGE = Path(__file__).parents[2] / "docs" / "evaluation" / "adding-an-attack.md"


@pytest.fixture(scope="module")
def momentum() -> Any:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, str(PAGE), "exec"), names)  # noqa: S102
    return names["Momentum"]


def test_the_page_is_a_whole_attack(momentum: Any) -> None:
    assert issubclass(momentum, Attack)
    assert momentum(3).longer().settings() == {"iterations": 6, "decay": 1.0}
    with pytest.raises(ConfigError):
        momentum(0)


def test_its_passes_are_what_it_plans_and_it_breaks_what_it_should(momentum: Any) -> None:
    model = make_model()
    dent = Dent(model, DentConfig(steps=1))
    subject = make_subject({"dent": dent}, [momentum(4)], model=model, eps="8/255")
    settings = Settings(n=8, batch_size=8, diagnostics="full")
    result = evaluate(subject, settings)
    for defense in result.defenses.values():
        found = defense.attack("momentum")
        assert (found.queries, found.backwards) == (5, 4)
        assert found.served.correct < defense.natural.correct
        assert found.claimed == found.served
        states = {item.name: item.state for item in defense.diagnostics}
        assert states["more iterations still help"] != "not-run"
        assert states["served differs from claimed"] == "passed"
    assert estimate(subject, settings).defenses["dent"].gradients > 4
