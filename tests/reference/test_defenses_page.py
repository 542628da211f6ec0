"""Tests of the examples in docs/defenses.md."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dent import DENT_PLUS, Dent, entropy
from dent.defenses import describe, load_config, make

PAGE = (Path(__file__).parents[2] / "docs" / "defenses.md").read_text()


def block(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return str(found)


def test_example_of_an_own_defense_matches_its_definition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: nn.Sequential, batch: Tensor
) -> None:
    (tmp_path / "mine.py").write_text(block("python"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "mine", raising=False)

    defense = make("mine:BitDepth", small)

    assert describe(defense) == {
        "name": "bit-depth",
        "settings": {"bits": [8, 5, 3]},
        "batch_dependent": False,
        "stateful": False,
        "randomized": False,
    }
    choices = torch.stack([small((batch * m).round() / m) for m in (255, 31, 7)])
    surest = torch.stack([entropy(logits) for logits in choices]).argmin(0)
    assert len(surest.unique()) > 1
    torch.testing.assert_close(defense(batch), choices[surest, torch.arange(5)])
    x = batch.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(defense(x).square().sum(), x)
    assert bool((gradient != 0).any())
    batch[2, 0, 0, 0] = torch.nan
    assert defense(batch).isnan().any(1).tolist() == [False, False, True, False, False]


def test_example_of_a_configuration_can_be_loaded(tmp_path: Path, small: nn.Sequential) -> None:
    path = tmp_path / "settings.json"
    path.write_text(block("json"))
    config = load_config(path)
    defense = make(str(path), small)
    assert isinstance(defense, Dent)
    assert not defense.batch_dependent
    assert (config.steps, config.lr, config.betas) == (6, DENT_PLUS.lr, DENT_PLUS.betas)
