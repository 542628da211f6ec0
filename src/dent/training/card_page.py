"""The model card as a readable page, with metadata for the Hugging Face hub."""

import json
from typing import Any

from dent.data.registry import HUB_NAMES
from dent.support.plural import counted
from dent.support.rounding import percent


def page(card: dict[str, Any], *, terms: str | None = None) -> str:
    """Return a card as Markdown, with front matter for the Hugging Face hub.

    Args:
        card: The card.
        terms: The license of the weights, as the hub writes it (`mit`); None states no license.
    """
    purpose = "nominally" if card["threat"] is None else f"for {card['threat']}"
    summary = (
        f"{card['architecture']} for {card['dataset']} "
        f"({counted(card['num_classes'], 'class')}, images in "
        f"[0, 1]), trained {purpose}."
    )
    rows = [
        f"| {share(row)} | {row['attack'] or 'none'} | {row['threat'] or 'natural'} | "
        f"{row['provenance']} |"
        for row in card["accuracies"]
    ]
    facts = [f"- {name}: {value}" for name, value in _facts(card).items()]
    header = ["| accuracy | attack | threat model | how |", "| ---: | --- | --- | --- |"]
    title = f"# {card['name']}"
    return front_matter(card, terms) + "\n".join(
        [title, "", summary, "", *header, *rows, "", *facts, ""]
    )


def front_matter(card: dict[str, Any], terms: str | None = None) -> str:
    """Return a page's metadata for the Hugging Face hub, in YAML between two lines `---`.

    Args:
        card: The card.
        terms: As in `page`.
    """
    kind = HUB_NAMES.get(card["dataset"].partition("-")[0])
    result = {
        "task": {"type": "image-classification"},
        "dataset": {"name": card["dataset"], "type": kind or card["dataset"], "split": "test"},
        "metrics": [
            {
                "type": "accuracy",
                "name": _metric(row),
                "value": round(row["correct"] / row["total"], 4),
            }
            for row in card["accuracies"]
        ],
    }
    fields = {
        "license": terms,
        "library_name": "torch-dent",
        "pipeline_tag": "image-classification",
        "tags": ["adversarial-robustness", "pytorch"],
        "datasets": kind and [kind],
        "metrics": ["accuracy"],
        "model-index": [{"name": card["name"], "results": [result]}],
    }
    # Every JSON value is valid YAML.
    lines = [f"{name}: {json.dumps(value)}" for name, value in fields.items() if value is not None]
    return "\n".join(["---", *lines, "---", "", ""])


def _metric(row: dict[str, Any]) -> str:
    attacked = f"under {row['attack']} at {row['threat']}" if row["attack"] else "natural"
    return f"accuracy, {attacked}, {counted(row['total'], 'image')}"


def share(accuracy: dict[str, Any]) -> str:
    """Return one of a card's accuracies as text: `71.0% (6739/9488)`."""
    correct, total = accuracy["correct"], accuracy["total"]
    return f"{percent(correct / total)} ({correct}/{total})"


def _facts(card: dict[str, Any]) -> dict[str, str]:
    recipe = card["recipe"]
    fields = [f"{k} {v}" for k, v in recipe.items() if v is not None and k != "name"]
    watched, weights = card["watched"], card["weights"]
    start = card["initial"]["file"] or f"drawn from seed {card['seed']}"
    facts = {
        f"Recipe `{recipe['name']}`": ", ".join(fields),
        "Trained on": f"{counted(card['images'], 'image')} of {card['dataset']} train "
        f"(digest of the set {card['data']['digest']})",
        "Started from": f"{start} (digest {card['initial']['digest']})",
        "Kept": f"epoch {card['best_epoch']} of {len(card['metrics'])}, the best on "
        f"{counted(watched['images'], 'watched image')} of {watched['of']}, which no accuracy "
        "above includes",
        "Made": f"seed {card['seed']}, {card['seconds']} s on {card['device']}, precision "
        f"{card['precision']}, "
        + ", ".join(f"{name} {version}" for name, version in card["versions"].items()),
        "Weights": f"{weights['file']}, {weights['bytes']} bytes, SHA-256 {weights['sha256']}",
    }
    return facts | ({"Stopped early": card["stopped"]} if card["stopped"] else {})
