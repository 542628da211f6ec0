"""Export rows in the format of Every Eval Ever, a common store of evaluation results.

The schema has version 0.2.2: `every_eval_ever/schemas/eval.schema.json` in the repository
evaleval/every_eval_ever. Values without a field of their own go into `additional_details`, as text.
"""

import hashlib
import json
import uuid
from pathlib import PurePosixPath
from typing import Any, Final

from dent import __version__
from dent.board.board_row import BoardRow
from dent.board.metrics import OURS, Metric, maker, metrics
from dent.data.registry import HUB_NAMES
from dent.support.filenames import portable

SCHEMA: Final = "0.2.2"
COLLECTION: Final = "torch-dent-board"
_IDS: Final = uuid.UUID("6f3c4e0e-6f0f-5b0b-9a6e-1d6f1d0c7a11")
"""Namespace of our ids."""


def every_eval_ever(row: BoardRow, now: float, url: str | None = None) -> tuple[str, bytes]:
    """Return the record of a row, and its path in the repository of Every Eval Ever.

    Args:
        row: The row. `reason_to_omit` must return None for it.
        now: The present time in seconds since 1970, for the time stamp of the record.
        url: URL of the board, if it is online.

    Returns:
        The path and the record, as JSON text in UTF-8.
    """
    result, spec = row.headline.result, row.headline.result.spec
    developer, name = portable(maker(row)), portable(row.name)
    versions = result.sessions[-1].versions if result.sessions else {}
    record: dict[str, Any] = {
        "schema_version": SCHEMA,
        "evaluation_id": f"{COLLECTION}/{row.track.name}/{developer}/{name}/{result.identity[:12]}",
        "retrieved_timestamp": f"{now:.0f}",
        "source_metadata": {
            "source_name": f"{OURS} board",
            "source_type": "evaluation_run",
            "source_organization_name": OURS,
            "evaluator_relationship": _relationship(row),
            "additional_details": _texts(
                evaluated_by=None if row.submission is None else row.submission.evaluated_by,
                trust=row.trust,
            ),
        },
        "eval_library": {
            "name": OURS,
            "version": versions.get(OURS, __version__),
            "additional_details": _texts(
                suite="dynamic",
                suite_version=row.suite,
                budget=row.track.budget,
                versions=versions,
            ),
        },
        "model_info": {
            "name": row.name,
            "id": f"{developer}/{name}",
            "developer": developer,
            "inference_engine": {"name": "torch", "version": versions.get("torch", "unknown")},
            "additional_details": _texts(
                kind="dynamic defense",
                deployment_type="self_deployed",
                model_availability="unknown" if _has_own_code(row) else "open_weights",
                base_model=spec.model.name,
                base_model_weights_sha256=spec.model.weights,
                factory=None if row.submission is None else row.submission.factory,
                repository=None if row.submission is None else row.submission.repository,
                commit=None if row.submission is None else row.submission.commit,
                paper=None if row.submission is None else row.submission.paper,
                cost_in_static_forwards=row.cost,
                predictions_depend_on_the_batch=row.depends_on_batch,
            ),
        },
        "evaluation_results": [_result(row, metric) for metric in metrics(row)],
    }
    if result.sessions:
        record["evaluation_timestamp"] = result.sessions[-1].started
    if url is not None:
        record["source_metadata"]["source_organization_url"] = url
    path = PurePosixPath("data", COLLECTION, developer, name, f"{_file_id(row)}.json")
    return str(path), (json.dumps(record, indent=2, allow_nan=False) + "\n").encode()


def _result(row: BoardRow, metric: Metric) -> dict[str, Any]:
    score: dict[str, Any] = {
        "score": metric.value,
        "uncertainty": {"num_samples": metric.samples},
        "details": _texts(verdict=row.ruling, decided_by=row.decided_by),
    }
    if metric.interval is not None:
        lower, upper = metric.interval
        score["uncertainty"]["confidence_interval"] = {
            "lower": lower,
            "upper": upper,
            "confidence_level": metric.level,
            "method": metric.method,
        }
    least, most = metric.bounds
    own, is_accuracy = f"{OURS}.{metric.key}", metric.key == "clean_accuracy"
    return {
        "evaluation_result_id": f"{row.headline.result.identity}/{metric.key}",
        "evaluation_name": f"{COLLECTION}.{row.track.name}.{metric.key}",
        "source_data": _source(row),
        "metric_config": {
            "evaluation_description": metric.description,
            "metric_id": "accuracy" if is_accuracy else own,
            "metric_name": metric.title,
            "metric_kind": "accuracy" if is_accuracy else metric.key,
            "metric_unit": "proportion",
            "lower_is_better": False,
            "score_type": "continuous",
            "min_score": least,
            "max_score": most,
            "additional_details": _texts(
                norm=row.track.norm,
                eps=row.track.eps,
                batch_size=row.track.batch_size,
                randomness=row.headline.result.spec.settings.randomness,
                track_identity=row.track.identity,
                nonce=row.nonce,
            ),
        },
        "score_details": score,
    }


def _source(row: BoardRow) -> dict[str, Any]:
    dataset = row.headline.result.spec.dataset
    details = _texts(digest=dataset.digest, split_size=dataset.size)
    if dataset.name not in HUB_NAMES:
        return {
            "dataset_name": dataset.name,
            "source_type": "other",
            "additional_details": details,
        }
    ids = row.track.ids(row.nonce)
    return {
        "dataset_name": dataset.name,
        "source_type": "hf_dataset",
        "hf_repo": HUB_NAMES[dataset.name],
        "hf_split": dataset.split,
        "samples_number": len(ids),
        "sample_ids": [str(each) for each in ids],
        "additional_details": details,
    }


def _relationship(row: BoardRow) -> str:
    """Return the relation of the evaluator to the developer of the record."""
    if maker(row) == OURS:
        return "first_party"
    if not _has_own_code(row):
        return "third_party"
    return "first_party" if row.state == "claimed" else "collaborative"


def _has_own_code(row: BoardRow) -> bool:
    return row.submission is not None and ":" in row.submission.factory


def _file_id(row: BoardRow) -> uuid.UUID:
    """Return an id that is the same wherever the row is exported.

    The repository accepts only names in the format of random UUIDs (version 4).
    """
    name = f"{row.track.name}/{row.headline.result.identity}"
    return uuid.UUID(bytes=hashlib.sha256(_IDS.bytes + name.encode()).digest()[:16], version=4)


def _texts(**values: Any) -> dict[str, str]:
    """Return all values but None as text, because the schema allows only text in details."""
    return {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in values.items()
        if value is not None
    }
