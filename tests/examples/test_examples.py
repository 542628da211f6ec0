"""The files of examples/ do what they print, compared with the library."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from dent import DENT_PLUS, Dent, ThreatModel
from dent.data import load
from dent.models import load as load_model
from tests.examples.conftest import FOLDER
from tests.small_models import make_tiny_cnn

Example = Callable[[str], dict[str, Any]]
EXAMPLES = sorted(path.stem for path in FOLDER.glob("*.py"))
PAGE = (FOLDER.parent / "docs" / "integrations.md").read_text()


def right(net: nn.Module, images: Tensor, labels: Tensor) -> int:
    with torch.no_grad():
        return int((net(images).argmax(1) == labels).sum())


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_has_a_docstring_and_a_mention_on_the_page_and_is_short(name: str) -> None:
    source = (FOLDER / f"{name}.py").read_text()
    told = ast.get_docstring(ast.parse(source)) or ""
    assert f"python examples/{name}.py" in told
    assert f"examples/{name}.py" in PAGE
    assert len(source.splitlines()) <= 80


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if "timm" in name else pytest.mark.slow) for name in EXAMPLES],
)
def test_an_example_runs_as_a_program(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(FOLDER / f"{name}.py")],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.count("\n") >= 2


def test_the_counts_of_the_plain_loop_match_the_library_batch_by_batch(
    example: Example, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = example("plain_test_loop")["main"](n=12, batch_size=8)
    images, labels = load("cifar10-sample").batch(range(12))
    model = load_model("resnet-14-2-linf")
    defended = Dent(model, DENT_PLUS)
    batches = [slice(0, 8), slice(8, 12)]
    assert counts == {
        "static": (right(model, images, labels), 12),
        "dent+": (sum(right(defended, images[part], labels[part]) for part in batches), 12),
    }
    assert f"dent+   {counts['dent+'][0]} of 12 natural images" in capsys.readouterr().out


def test_the_plain_loop_counts_an_image_without_prediction_as_wrong(example: Example) -> None:
    defended = Dent(make_tiny_cnn(), DENT_PLUS)
    images = torch.rand(4, 3, 8, 8)
    images[1] = torch.nan
    labels = defended(images).argmax(1)  # for a row of NaN, argmax also gives a class
    loader = DataLoader(TensorDataset(images, labels), batch_size=4)
    assert example("plain_test_loop")["accuracy"](defended, loader) == (3, 4)


def test_foolbox_attacks_stay_in_the_threat_model_and_counts_are_correct(
    example: Example, capsys: pytest.CaptureFixture[str]
) -> None:
    names = example("foolbox_attack")
    counts = names["main"](n=5)
    torch.manual_seed(0)
    images, labels = load("cifar10-sample").batch(range(5))
    model = load_model("resnet-14-2-linf")
    defended = Dent(model, DENT_PLUS)
    on_static = names["attack"](model, images, labels)
    on_defense = names["attack"](defended, images, labels)
    threat = ThreatModel("linf", "8/255")
    for adversarial in (on_static, on_defense):
        assert not threat.check(adversarial, images).any()
    assert not torch.equal(on_static, on_defense)
    assert counts == {
        "static, attacked itself": right(model, on_static, labels),
        "dent+, attacked itself": right(defended, on_defense, labels),
        "dent+, transferred from static": right(defended, on_static, labels),
    }
    with torch.no_grad():
        attacked, natural = (F.cross_entropy(model(x), labels) for x in (on_static, images))
    assert attacked > natural + 0.1
    assert f"{counts['dent+, attacked itself']} of 5 right" in capsys.readouterr().out


def test_torchattacks_leaves_the_model_in_eval_mode() -> None:
    torchattacks = pytest.importorskip("torchattacks")
    model = make_tiny_cnn().eval()
    defended = Dent(model, DENT_PLUS)
    images, labels = torch.rand(4, 3, 16, 16), torch.arange(4)
    adversarial = torchattacks.PGD(defended, eps=8 / 255, alpha=2 / 255, steps=2)(images, labels)
    assert not ThreatModel("linf", "8/255").check(adversarial, images).any()
    assert not torch.equal(adversarial, images)
    assert not any(module.training for module in model.modules())


def test_all_norm_layers_of_a_timm_model_are_adapted(
    example: Example, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("timm")
    defenses = example("timm_model")["main"]()
    printed = capsys.readouterr().out
    images, _ = load("cifar10-sample").batch(range(8))
    for name, kind in {"resnet10t": nn.BatchNorm2d, "vit_tiny_patch16_224": nn.LayerNorm}.items():
        model = defenses[name].unwrap()
        adaptation = defenses[name].adapt(images)
        layers = [module for module in model.modules() if isinstance(module, kind)]
        assert len(adaptation.parameters) == 2 * len(layers) > 0
        assert f"{name}: {2 * len(layers)} scales and shifts" in printed
        assert adaptation.entropy[-1].mean() < adaptation.entropy[0].mean()
        assert not torch.equal(defenses[name](images), model.eval()(images))


def test_the_clip_example_has_the_logits_of_transformers(example: Example, tmp_path: Path) -> None:
    """Oracle: CLIPModel itself, on a small checkpoint with a vocabulary of two letters."""
    transformers = pytest.importorskip("transformers")
    names = example("clip_zero_shot")
    vocabulary = {"a": 2, "a</w>": 3, "o": 4, "o</w>": 5, "<|startoftext|>": 0, "<|endoftext|>": 1}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer(
        str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt")
    )
    tokenizer.save_pretrained(tmp_path)
    layers = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64}
    config = transformers.CLIPConfig(
        text_config={**layers, "num_attention_heads": 2, "vocab_size": 6, "bos_token_id": 0}
        | {"eos_token_id": 1},
        vision_config={**layers, "num_attention_heads": 2, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    torch.manual_seed(1)
    clip = transformers.CLIPModel(config).eval()
    clip.save_pretrained(tmp_path)
    images, _ = load("cifar10-sample").batch(range(4))
    mean, std = (torch.tensor(names[each]).view(3, 1, 1) for each in ("MEAN", "STD"))
    tokens = tokenizer(
        [f"a photo of a {each}" for each in names["CLASSES"]], padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        expected = clip(pixel_values=(images - mean) / std, **tokens).logits_per_image
        logits = names["published"](str(tmp_path))(images)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert expected.std() > 0.01


def test_the_clip_example_adapts_only_the_norms_of_its_image_encoder(example: Example) -> None:
    names = example("clip_zero_shot")
    model = names["random"]()
    images, _ = load("cifar10-sample").batch(range(4))
    adaptation = Dent(model, DENT_PLUS).adapt(images)
    norms = [name for name, each in model.named_modules() if isinstance(each, nn.LayerNorm)]
    assert {name.rpartition(".")[0] for name in adaptation.parameters} == set(norms)
    assert len(norms) == 6


@pytest.mark.slow
def test_the_clip_example_gets_a_verdict(example: Example) -> None:
    result = example("clip_zero_shot")["main"]()
    assert result.defenses["dent+"].verdict is not None
