"""The model card describes what its weights do."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from dent import data, models
from dent.attacks import PGD, make
from dent.errors import ConfigError
from dent.training import Measured, TrainingResult, write_card
from dent.training.card_page import page
from tests.training.subjects import MODEL, fast, halves, run
from tools.ship import SHIPPED, TERMS, halve, main, ship

CPU = torch.device("cpu")
SMALL = Measured(pgd=8, autoattack=0, batch_size=8)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainingResult:
    return run(tmp_path_factory.mktemp("card") / "run", fast(epochs=2))


@pytest.fixture(scope="module")
def card(trained: TrainingResult) -> dict[str, object]:
    return json.loads(write_card(trained, halves()[1], CPU, SMALL).read_text())  # type: ignore[no-any-return]


def test_the_card_identifies_its_weights(trained: TrainingResult, card: dict[str, object]) -> None:
    content = trained.best.read_bytes()
    assert card["weights"] == {
        "file": "best.safetensors",
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        "dtype": "float32",
    }
    assert card["threat"] == "linf 8/255"
    assert card["architecture"] == MODEL
    assert card["best_epoch"] == trained.best_epoch


def test_progress_of_the_clean_accuracy_is_reported(trained: TrainingResult) -> None:
    """With all of CIFAR-10, it takes the longest of a small training on a CPU."""
    seen: list[tuple[int, int]] = []
    write_card(trained, halves()[1], CPU, SMALL, on_clean=lambda *of: seen.append(of))
    assert seen == [(0, 32), (32, 32)]


def test_accuracies_are_measured_on_images_that_were_not_watched(
    trained: TrainingResult, card: dict[str, object]
) -> None:
    natural, same, robust = card["accuracies"]  # type: ignore[misc]
    model = models.load(MODEL, weights=trained.best)
    x, y = halves()[1].batch(range(64 - 32))
    with torch.no_grad():
        right = (model(x).argmax(1) == y).sum()
    assert (natural["correct"], natural["total"]) == (int(right), 32)
    assert (robust["total"], robust["threat"], robust["attack"]) == (8, "linf 8/255", "PGD-20")
    # On the same images, robust accuracy is at most clean accuracy.
    assert (same["total"], same["threat"]) == (8, None)
    assert same["correct"] == int((model(x[:8]).argmax(1) == y[:8]).sum())
    assert robust["correct"] <= same["correct"]


def test_autoattack_and_pgd_are_reported_on_the_same_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run(tmp_path / "run", fast(epochs=1))
    cheap = {
        "pgd": PGD(iterations=1),
        "standard": make("standard", iterations=1, targets=1, square_iterations=1),
    }
    monkeypatch.setattr("dent.training.card.make", lambda name, **_: cheap[name])
    measured = Measured(pgd=12, autoattack=6, batch_size=4)
    card = json.loads(write_card(result, halves()[1], CPU, measured).read_text())
    shown = [(one["total"], one["attack"]) for one in card["accuracies"]]
    assert shown == [
        (32, None), (12, None), (12, "PGD-20"),
        (6, None), (6, "PGD-20"), (6, "AutoAttack (standard)"),
    ]  # fmt: skip
    for total in (12, 6):
        natural, *attacked = (o["correct"] for o in card["accuracies"] if o["total"] == total)
        assert all(correct <= natural for correct in attacked)


def test_the_card_page_gives_the_values_of_the_card(
    trained: TrainingResult, card: dict[str, object]
) -> None:
    page = (trained.folder / "card.md").read_text()
    for found in card["accuracies"]:  # type: ignore[attr-defined]
        assert f"({found['correct']}/{found['total']})" in page
    assert card["weights"]["sha256"] in page  # type: ignore[index]
    assert card["data"]["digest"] in page  # type: ignore[index]


def test_measuring_more_images_than_are_unwatched_is_refused(trained: TrainingResult) -> None:
    with pytest.raises(ConfigError, match="has 32 images apart from the 32 watched ones"):
        write_card(trained, halves()[1], CPU, Measured(pgd=33, autoattack=0))


def test_other_images_than_those_of_training_are_refused(trained: TrainingResult) -> None:
    other = data.load("cifar10-sample").subset(range(100, 164))
    with pytest.raises(ConfigError, match=r"expected the cifar10-sample .* got cifar10-sample"):
        write_card(trained, other, CPU, SMALL)


def test_shipping_measures_the_images_of_the_given_folder(
    trained: TrainingResult,
    card: dict[str, object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    roots: list[Path] = []
    watch = halves()[1]

    def load(name: str, *, root: Path) -> data.ImageDataset:
        roots.append(root)
        return watch

    monkeypatch.setattr("dent.data.load", load)
    monkeypatch.setattr("tools.ship.halve", lambda folder, test, measured: folder)
    monkeypatch.setattr("tools.ship.ship", lambda folder, name: folder)
    main(["--half", "--data", str(tmp_path), str(trained.folder), "tiny"])
    assert roots == [tmp_path]


def test_nominal_models_are_attacked_with_a_small_eps(tmp_path: Path) -> None:
    result = run(tmp_path / "run", fast(None, epochs=1))
    card = json.loads(write_card(result, halves()[1], CPU, SMALL).read_text())
    assert card["threat"] is None
    assert card["accuracies"][2]["threat"] == "linf 1.5/255"


def test_shipping_copies_the_weights_and_accuracies_of_the_card(
    trained: TrainingResult, card: dict[str, object], tmp_path: Path
) -> None:
    path = ship(trained.folder, "tiny", tmp_path)
    shipped = json.loads(path.read_text())
    assert shipped["name"] == "tiny"
    content = (tmp_path / shipped["weights"]["file"]).read_bytes()
    assert hashlib.sha256(content).hexdigest() == shipped["weights"]["sha256"]
    assert shipped["accuracies"] == card["accuracies"]
    assert "# tiny" in (tmp_path / "tiny.card.md").read_text()


def test_half_precision_weights_are_measured_and_shipped(
    trained: TrainingResult, card: dict[str, Any], tmp_path: Path
) -> None:
    test = halves()[1]
    path = ship(halve(trained.folder, test, SMALL), "tiny", tmp_path)
    half = json.loads(path.read_text())
    assert (half["weights"]["dtype"], card["weights"]["dtype"]) == ("float16", "float32")
    assert half["weights"]["bytes"] < 0.6 * card["weights"]["bytes"]
    assert half["identity"] == card["identity"]
    whole, rounded = (
        models.load(MODEL, weights=f) for f in (trained.best, tmp_path / "tiny.safetensors")
    )
    for exact, value in zip(
        whole.state_dict().values(), rounded.state_dict().values(), strict=True
    ):
        assert torch.equal(value, exact.half().float() if exact.is_floating_point() else exact)
    x, y = test.batch(range(32))
    with torch.no_grad():
        assert half["accuracies"][0]["correct"] == int((rounded(x).argmax(1) == y).sum())


def test_weights_that_do_not_match_their_card_are_not_shipped(
    trained: TrainingResult, card: dict[str, object], tmp_path: Path
) -> None:
    assert card
    original = trained.best.read_bytes()
    trained.best.write_bytes(original[:-1] + b"\0")
    try:
        with pytest.raises(ConfigError, match=r"does not match .*card\.json: measure"):
            ship(trained.folder, "tiny", tmp_path / "out")
    finally:
        trained.best.write_bytes(original)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match=r"has no card\.json"):
        ship(tmp_path, "tiny", tmp_path / "out")


def test_front_matter_of_shipped_cards_is_yaml_with_the_values_of_the_card() -> None:
    """Oracle: a YAML parser. To update a page: `card_page.page(card, terms=TERMS)`."""
    cards = sorted(SHIPPED.glob("*.card.json"))
    assert cards
    for file in cards:
        card = json.loads(file.read_text())
        text = (SHIPPED / f"{card['name']}.card.md").read_text()
        assert text == page(card, terms=TERMS)
        empty, front, rest = text.split("---\n", 2)
        metadata = yaml.safe_load(front)
        assert empty == ""
        assert rest.startswith(f"\n# {card['name']}\n")
        assert (metadata["license"], metadata["library_name"]) == ("mit", "torch-dent")
        assert metadata["datasets"] == ["uoft-cs/cifar10"]
        (model,) = metadata["model-index"]
        (result,) = model["results"]
        assert [round(m["value"], 4) for m in result["metrics"]] == [
            round(a["correct"] / a["total"], 4) for a in card["accuracies"]
        ]
        assert len({m["name"] for m in result["metrics"]}) == len(card["accuracies"])


def test_the_card_of_a_user_model_states_no_license(
    trained: TrainingResult, card: dict[str, Any]
) -> None:
    front = yaml.safe_load((trained.folder / "card.md").read_text().split("---\n", 2)[1])
    assert "license" not in front
    assert front["model-index"][0]["name"] == card["name"]
    assert front["model-index"][0]["results"][0]["dataset"]["name"] == card["dataset"]
