"""Export rows as evaluation results for the Hugging Face hub.

The hub reads results from two places in a model's repository: `model-index` in the front matter of
README.md, and files in `.eval_results/`. These files name a dataset that the hub lists as a
benchmark. See https://huggingface.co/docs/hub/eval-results.
"""

from pathlib import PurePosixPath
from typing import Any, Final

from dent.board.board_row import BoardRow
from dent.board.metrics import OURS, metrics
from dent.data.registry import HUB_NAMES
from dent.errors import MissingExtraError
from dent.report.markdown import escape
from dent.support.extras import installing, require
from dent.support.filenames import portable

_PURPOSE: Final = "evaluation results for the Hugging Face hub"
_TASK: Final = "image-classification"
CARD: Final = "README.md"
RESULTS: Final = ".eval_results"


def hugging_face(
    row: BoardRow, benchmark: str | None = None, url: str | None = None
) -> dict[str, bytes]:
    """Return the contents of the files of a row, by path.

    Args:
        row: The row. `reason_to_omit` must return None for it.
        benchmark: The benchmark dataset on the hub, `ORG/NAME`. If None, there is no file in
            `.eval_results`.
        url: URL of the board, if it is online.

    Raises:
        MissingExtraError: huggingface_hub is not installed, or is too old for `benchmark`.
    """
    hub = require("huggingface_hub", _PURPOSE, extra="hf")
    if benchmark is not None and not hasattr(hub, "EvalResultEntry"):
        raise MissingExtraError(
            "evaluation results of a benchmark (--benchmark) need huggingface_hub 1.4 or later, "
            f"and {hub.__version__} is installed: " + installing("huggingface_hub>=1.4")
        )
    folder = PurePosixPath(portable(row.track.name), portable(row.folder.name))
    found = {str(folder / CARD): _card(hub, row, url).encode()}
    if benchmark is not None:
        path = folder / RESULTS / f"{portable(row.track.name)}.yaml"
        found[str(path)] = _entries(hub, row, benchmark, url).encode()
    return found


def _card(hub: Any, row: BoardRow, url: str | None) -> str:
    dataset, found = row.headline.result.spec.dataset, metrics(row)
    results = [
        hub.EvalResult(
            task_type=_TASK,
            task_name=row.track.label,
            dataset_type=HUB_NAMES.get(dataset.name, dataset.name),
            dataset_name=dataset.name,
            dataset_split=dataset.split,
            metric_type="accuracy" if metric.key == "clean_accuracy" else metric.key,
            metric_name=metric.title,
            metric_value=metric.value,
            metric_args={
                "description": metric.description,
                "samples": metric.samples,
                "interval": None if metric.interval is None else list(metric.interval),
            },
            source_name=None if url is None else f"{OURS} board",
            source_url=url,
        )
        for metric in found
        if metric.key != "base_robust_accuracy"  # of another model
    ]
    data = hub.ModelCardData(
        model_name=row.name, eval_results=results, tags=["adversarial-robustness", OURS]
    )
    lines = [
        f"# {escape(row.name)}",
        "",
        f"{row.track.label}. Verdict: **{row.ruling}**. Trust: {escape(row.trust)}.",
        "",
        "| metric | value | 95% interval | samples |",
        "| --- | ---: | ---: | ---: |",
        *(
            f"| {metric.title} | {metric.value:.4f} | "
            + ("" if metric.interval is None else "{:.4f} to {:.4f}".format(*metric.interval))
            + f" | {metric.samples} |"
            for metric in found
        ),
        "",
        *dict.fromkeys(f"{metric.title}: {metric.description}" for metric in found),
    ]
    return f"---\n{data.to_yaml()}\n---\n" + "\n".join(lines) + "\n"


def _entries(hub: Any, row: BoardRow, benchmark: str, url: str | None) -> str:
    sessions = row.headline.result.sessions
    entries = [
        hub.EvalResultEntry(
            dataset_id=benchmark,
            task_id=f"{portable(row.track.name)}_{metric.key}",
            value=metric.value,
            date=sessions[-1].started if sessions else None,
            source_url=url,
            source_name=None if url is None else f"{OURS} board",
            notes=metric.description,
        )
        for metric in metrics(row)
    ]
    text: str = hub.utils.yaml_dump(hub.eval_result_entries_to_yaml(entries))
    return text
