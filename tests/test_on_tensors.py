"""`dent.evaluate` gives the engine's result from a model and tensors of images and labels."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dent
from dent import DENT_PLUS, Dent, ThreatModel
from dent.attacks import make, make_from
from dent.attacks.pgd import PGD
from dent.data.tensors import TensorDataset
from dent.errors import ConfigError, InputError, UnknownNameError, UnsupportedModelError
from dent.evaluation import RecordError, Settings, Subject, load_run, suite
from dent.evaluation import evaluate as engine
from tests.attacks.known_defenses import Identity

CHEAP = "pgd:iterations=2"


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(4, 3),
    ).eval()  # fmt: skip


def data(n: int = 6) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(1)
    images = torch.rand(n, 3, 8, 8, generator=draws)
    return images, net()(images).argmax(1)


def broken() -> Tensor:
    images, _ = data()
    images[4, 0, 0, 0] = float("nan")
    return images


def test_default_eps_depends_on_the_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr("dent.evaluation.evaluate", lambda subject, *_, **__: seen.append(
        subject.threat.label))  # fmt: skip
    for norm in ("linf", "l2"):
        dent.evaluate(net(), *data(), norm=norm, defense="static", attack=CHEAP)
    assert seen == ["linf 8/255", "l2 0.5"]
    with pytest.raises(ConfigError, match="eps has no default in l1: pass one, such as 12"):
        dent.evaluate(net(), *data(), norm="l1", defense="static", attack=CHEAP)


def test_a_subject_refuses_datasets_of_torch_and_a_list_of_defenses() -> None:
    model, threat = net(), ThreatModel("linf", "8/255")
    dataset: Any = torch.utils.data.TensorDataset(*data())
    message = r"got torch\.utils\.data\.dataset\.TensorDataset\. For tensors, call dent\.evaluate\("
    with pytest.raises(InputError, match=message):
        engine(Subject(model, dataset, {"a": model}, [make("pgd")], threat))
    defenses: Any = [Dent(model)]
    with pytest.raises(InputError, match=r"defenses must be a dict by name.*got list"):
        engine(Subject(model, TensorDataset(*data(), 3), defenses, [make("pgd")], threat))


def test_a_subject_refuses_names_instead_of_a_defense_or_model() -> None:
    dataset, threat = TensorDataset(*data(), 3), ThreatModel("linf", "8/255")
    model: Any = net()
    with pytest.raises(InputError, match=r"dent\.defenses\.make\('dent\+', model\) makes it"):
        engine(Subject(model, dataset, {"a": "dent+"}, [make("pgd")], threat))  # type: ignore[dict-item]
    model = "resnet-14-2-linf"
    with pytest.raises(InputError, match=r"dent\.models\.load\('resnet-14-2-linf'\) loads it"):
        engine(Subject(model, dataset, {}, [make("pgd")], threat))


def test_evaluate_gives_the_result_of_the_engine_on_the_same_tensors(tmp_path: Path) -> None:
    images, labels = data()
    model = net()
    result = dent.evaluate(
        model, images, labels, eps="16/255", attack=CHEAP, batch_size=4, out=tmp_path / "run"
    )
    subject = Subject(
        model,
        TensorDataset(images, labels, 3),
        {"dent+": Dent(model, DENT_PLUS)},
        [make_from(CHEAP)],
        ThreatModel("linf", "16/255"),
    )
    same = engine(subject, Settings(batch_size=4))
    assert result.identity == same.identity
    for name in ("static", "dent+"):
        assert result.defenses[name].worst == same.defenses[name].worst
        assert result.defenses[name].natural == same.defenses[name].natural
    assert result.defenses["static"].natural.correct == 6
    found = load_run(tmp_path / "run").images("dent+", CHEAP)
    assert found.shape == images.shape
    assert float((found - images).abs().max()) <= 16 / 255 + 1e-6
    assert float((found - images).abs().max()) > 0


def test_inference_mode_of_the_caller_does_not_change_the_result() -> None:
    model, (images, labels) = net(), data()
    expected = dent.evaluate(model, images, labels, defense="dent+", attack=CHEAP)
    with torch.inference_mode():
        result = dent.evaluate(model, images, labels, defense="dent+", attack=CHEAP)
        assert torch.is_inference_mode_enabled()
    for name, known in expected.defenses.items():
        found = result.defenses[name]
        assert (found.natural, found.worst.served) == (known.natural, known.worst.served)


def test_another_default_dtype_is_refused() -> None:
    model, (images, labels) = net(), data()
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.raises(ConfigError, match=r"is torch\.float64.*set_default_dtype"):
            dent.evaluate(model, images, labels, defense="dent+", attack=CHEAP)
    finally:
        torch.set_default_dtype(torch.float32)


def test_images_of_a_shuffled_run_are_returned_in_the_input_order(tmp_path: Path) -> None:
    images, labels = data(7)
    model = net()
    subject = Subject(model, TensorDataset(images, labels, 3), {}, [make("pgd", iterations=1)],
                      ThreatModel("linf", "1/255"))  # fmt: skip
    engine(subject, Settings(batch_size=3, order="shuffled"), out=tmp_path / "run")
    run = load_run(tmp_path / "run")
    assert list(run.plan.batches[0].ids) != [0, 1, 2]
    moved = (run.images("static", "pgd") - images).flatten(1).abs().amax(1)
    assert float(moved.max()) < 1.01 / 255
    with pytest.raises(RecordError, match=r"no images of fab on static for 3 of 3 .*pgd on static"):
        run.images("static", "fab")


def test_default_attacks_are_those_of_the_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Subject] = []

    def stop(subject: Subject, *_: Any, **__: Any) -> None:
        seen.append(subject)

    monkeypatch.setattr("dent.evaluation.evaluate", stop)
    dent.evaluate(net(), *data())
    dent.evaluate(net(), *data(), suite="dynamic", budget="full", norm="L2", eps=0.5)
    assert [a.name for a in seen[0].attacks] == [a.name for a in suite("dynamic", "small")]
    assert [a.settings() for a in seen[1].attacks] == [
        a.settings() for a in suite("dynamic", "full")
    ]
    assert str(seen[0].threat) == "linf 8/255"
    assert str(seen[1].threat) == "l2 0.5"


@pytest.mark.slow
def test_the_suite_gives_a_verdict() -> None:
    images, labels = data(4)
    result = dent.evaluate(net(), images, labels, eps="4/255")
    verdict = result.defenses["dent+"].verdict
    assert verdict is not None
    assert verdict.ruling in ("robust gain", "no gain", "harmful", "inconclusive")


@pytest.mark.parametrize(
    ("defense", "names"),
    [
        ("static", ["static"]),
        (["static", "statistics-only"], ["static", "statistics-only"]),
        (Dent(net(), DENT_PLUS).with_steps(1), ["static", "defense"]),
        ({"mine": Dent(net(), DENT_PLUS).with_steps(1)}, ["static", "mine"]),
        ({"mine": "statistics-only", "static": "static"}, ["static", "mine"]),
    ],
)
def test_defenses_can_be_given_by_name_or_as_objects(defense: Any, names: list[str]) -> None:
    result = dent.evaluate(net(), *data(), defense=defense, attack=CHEAP)
    assert list(result.defenses) == names


def test_attacks_can_be_given_by_name_or_as_objects() -> None:
    attacks = [make("pgd", iterations=1), "pgd:iterations=2"]
    result = dent.evaluate(net(), *data(), defense="static", attack=attacks)
    assert [one.name for one in result.spec.attacks] == ["pgd", "pgd:iterations=2"]


def test_int32_labels_and_float64_images_give_the_same_result() -> None:
    images, labels = data()
    first = dent.evaluate(net(), images, labels, defense="static", attack=CHEAP)
    again = dent.evaluate(net(), images.double(), labels.int(), defense="static", attack=CHEAP)
    assert again.identity == first.identity
    assert again.defenses["static"].worst == first.defenses["static"].worst


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"images": data()[0] * 255}, InputError, r"in \[0, 1\].*divide bytes by 255"),
        ({"images": (data()[0] * 255).byte()}, InputError, r"images\.float\(\) / 255"),
        ({"images": data()[0][0]}, InputError, r"\(N, C, H, W\)"),
        ({"images": data()[0].numpy()}, InputError, r"got ndarray: pass torch\.from_numpy\(images"),
        ({"images": data()[0].tolist()}, InputError, r"got list: pass torch\.tensor\(images"),
        ({"images": broken()}, InputError, r"got NaN or infinity in images\[4\]"),
        ({"images": data()[0][:0], "labels": data()[1][:0]}, InputError, "at least 1"),
        ({"labels": data()[1][:3]}, InputError, r"6 integers.*got shape \(3,\)"),
        ({"labels": data()[1].float()}, InputError, "got float32"),
        ({"labels": data()[1] + 3}, InputError, "from 0 to 2, got values from 5"),
        ({"labels": [0] * 6}, InputError, r"got list: pass torch\.tensor\(labels\)"),
        ({"labels": data()[1].numpy()}, InputError, r"got ndarray: pass torch\.from_numpy\(labels"),
        ({"model": "resnet-14-2-linf"}, InputError,
         r"Module, got the name 'resnet-14-2-linf': dent\.models\.load\('resnet-14-2-linf'\)"),
        ({"model": nn.Linear}, InputError, "got the class Linear: pass an instance"),
        ({"defense": Identity}, InputError, r"got the class Identity: pass Identity\(model\)"),
        ({"defense": {"it": Identity}}, InputError, r"'it'.*pass Identity\(model\)"),
        ({"defense": 5}, InputError, "got int"),
        ({"defense": [Dent(net())]}, ConfigError, "names .*got Dent: pass a dict"),
        ({"attack": 5}, ConfigError, "attack must be a name .*got 5"),
        ({"attack": ["pgd", 5]}, ConfigError, "attack must be a name .*got 5"),
        ({"attack": PGD}, ConfigError, r"got the class PGD: pass PGD\(\)"),
        ({"model": net().train()}, UnsupportedModelError, "training mode"),
        ({"attack": "pgdd"}, UnknownNameError, "pgd"),
        ({"defense": "dent++"}, UnknownNameError, "dent"),
        ({"defense": ["dent", "dent"]}, ConfigError, "named twice"),
        ({"norm": "l7"}, ConfigError, "norm must be"),
        ({"eps": 8}, ConfigError, "8/255"),
        ({"norm": "l2", "eps": 128}, ConfigError, "128/255"),
        ({"suite": "dynamic", "attack": "pgd"}, ConfigError, "leave out"),
        ({"budget": "full", "attack": "pgd"}, ConfigError, "budget='full' is for the suite"),
        ({"suite": "other", "attack": None}, UnknownNameError, "no suite"),
    ],
)  # fmt: skip
def test_invalid_arguments_are_refused_with_advice(
    change: dict[str, Any], error: type[Exception], said: str
) -> None:
    images, labels = data()
    arguments = {"model": net(), "images": images, "labels": labels, "attack": CHEAP, **change}
    with pytest.raises(error, match=said):
        dent.evaluate(**arguments)


def test_a_model_that_returns_a_dict_is_refused_with_a_hint_to_the_adapter() -> None:
    class Dictionary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"logits": self.net(x)}

    model = Dictionary().eval()
    with pytest.raises(UnsupportedModelError, match=r"dent\.Logits\(model\)"):
        dent.evaluate(model, *data(), attack=CHEAP)
    dent.evaluate(dent.Logits(model), *data(), defense="static", attack=CHEAP)


def test_printed_result_is_a_few_lines() -> None:
    result = dent.evaluate(net(), *data(), defense="static", attack=CHEAP, batch_size=3)
    first, second, *others = str(result).splitlines()
    assert first == "Sequential on 6 images of tensors, 2 batches, linf eps 8/255"
    assert re.fullmatch(r"static: clean 100\.0%, worst case [\d.]+% \[[\d.]+, [\d.]+\]", second)
    assert len(others) <= 1


def test_progress_true_prints_the_cost_and_every_unit(capsys: pytest.CaptureFixture[str]) -> None:
    arguments: Any = {"defense": "static", "attack": CHEAP, "batch_size": 6}
    dent.evaluate(net(), *data(), **arguments, progress=True)
    printed = capsys.readouterr()
    first, *units = printed.err.splitlines()
    pattern = r"This run takes about .* early \(timed on .*\)\. The images need less than 1 MB\."
    assert re.fullmatch(pattern, first)
    assert units[0].startswith("[0/")
    assert any(CHEAP in line for line in units)
    assert printed.out == ""
    for silent in (False, None):
        dent.evaluate(net(), *data(), **arguments, progress=silent)
    assert capsys.readouterr() == ("", "")
    with pytest.raises(ConfigError, match=r"progress must be True, or a function.*got 'bar'"):
        dent.evaluate(net(), *data(), **arguments, progress="bar")


def test_tensor_dataset_does_not_share_memory_with_the_caller() -> None:
    images, labels = data()
    dataset = TensorDataset(images, labels, 3)
    images.zero_()
    labels.fill_(2)
    again, their = dataset.batch([0, 1])
    assert float(again.max()) > 0
    again.zero_()
    assert torch.equal(dataset.batch([0, 1])[0], data()[0][:2])
    assert torch.equal(their, data()[1][:2])
    assert dataset.labels_of([5, 0]) == data()[1][[5, 0]].tolist()
