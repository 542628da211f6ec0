"""Run each evaluation that tables need once, in run folders that can be resumed."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from dent import data, models
from dent.attacks import make_from
from dent.config import DentConfig
from dent.data import ImageDataset
from dent.data.progress import OnBytes as Fetched
from dent.defenses.dent import Dent
from dent.errors import DataError, MissingExtraError, WeightsError
from dent.evaluation import Progress, Subject, evaluate
from dent.evaluation.records.folder import RUN, read_run
from dent.evaluation.static_part import find_static_part
from dent.evaluation.subject import prepare
from dent.evaluation.suites import suite
from dent.paper.planning import RUNS, PaperPlan, PlannedRun
from dent.paper.profile import run_profile
from dent.paper.scales import Chosen
from dent.report import write_report
from dent.storage.disk import is_there, write_atomically, writing

REPORT = "report.html"
OnRun = Callable[[int, int, str, Progress | None], None]
"""Called with: number of finished runs, number of all runs, name of the run, progress or None."""


class Loader:
    """Loads models and datasets, and keeps the last model and all datasets.

    Args:
        device: The device of the models.
        data_root: Folder of datasets; see `dent.data.load`.
        fetched: Shows the progress of downloads; the argument `progress` of `dent.data.load`.
    """

    def __init__(
        self,
        device: torch.device,
        data_root: Path | None = None,
        fetched: bool | Fetched = False,
    ) -> None:
        self.device = device
        self._root = data_root
        self._fetched = fetched
        self._datasets: dict[str, ImageDataset] = {}
        self._model: tuple[Chosen, nn.Module] | None = None

    def dataset(self, name: str) -> ImageDataset:
        """Return the test split of a dataset."""
        if name not in self._datasets:
            self._datasets[name] = data.load(name, root=self._root, progress=self._fetched)
        return self._datasets[name]

    def model(self, chosen: Chosen) -> nn.Module:
        """Return a model in eval mode, checked on two images.

        Raises:
            WeightsError: Its weights are missing. The message says which command makes them.
        """
        if self._model is None or self._model[0] != chosen:
            if chosen.weights is not None and not chosen.weights.is_file():
                raise WeightsError(
                    f"{chosen.name} has no weights at {chosen.weights}: make them by\n"
                    f"  {chosen.made_by}\nor name another folder of weights (--weights-folder)"
                )
            images = self.dataset(chosen.dataset)
            classes = len(images.classes)
            model = models.load(
                chosen.name, weights=chosen.weights, num_classes=classes, device=self.device
            )
            sample, _ = images.batch(range(min(2, len(images))))
            models.check_model(model, classes, sample.to(self.device))
            self._model = chosen, model
        return self._model[1]

    def subject(self, run: PlannedRun) -> Subject:
        """Return the subject of a run, as the `dent evaluate` command of the run makes it."""
        model = self.model(run.model)
        attacks = suite("dynamic", run.suite) if run.suite else map(make_from, run.attacks)
        defenses = {} if run.defense is None else {run.defense_name: Dent(model, run.defense)}
        return Subject(
            model=model,
            dataset=self.dataset(run.model.dataset),
            defenses=defenses,
            attacks=tuple(attacks),
            threat=run.threat,
            model_name=run.model.name,
        )


def run_plans(
    plans: Sequence[PaperPlan],
    out: Path,
    loader: Loader | None = None,
    *,
    watch: OnRun | None = None,
) -> dict[str, str]:
    """Run all missing evaluations that tables need.

    A run that several tables need is done once. A run whose model or images cannot be loaded is
    skipped, so that the other runs still happen. The dynamic suite attacks each static model once,
    and the runs of its other defenses copy these records, also in a later call.

    Args:
        plans: The tables.
        out: The output folder. Run folders are in `out/runs`, and configurations of defenses in
            `out/defenses`. The same call resumes where it stopped.
        loader: The loader; by default one for the CPU.
        watch: Called before every run and profile, and during a run with its progress.

    Returns:
        For each skipped run, the reason by the name of its folder.

    Raises:
        RecordError: A record cannot be read or written. `evaluate` can raise other errors, too.
    """
    loader = loader or Loader(torch.device("cpu"))
    runs = tuple(dict.fromkeys(run for plan in plans for run in plan.runs()))
    profiles = [plan for plan in plans if plan.profile is not None]
    total, missing = len(runs) + len(profiles), dict[str, str]()
    # Grouped by model, so that each model is loaded once, and then in the order of the tables.
    order = list(dict.fromkeys(run.model for run in runs))
    grouped = sorted(runs, key=lambda run: order.index(run.model))
    for done, run in enumerate(grouped):
        report = None
        if watch is not None:
            watch(done, total, run.folder, None)
            report = _within(watch, done, total, run.folder)
        try:
            subject = loader.subject(run)
        except (WeightsError, DataError, MissingExtraError) as error:
            missing[run.folder] = str(error)
            continue
        write_configuration(run, out)
        path = out / RUNS / run.folder
        shared = _static_part(run, subject, path) if run.suite else None
        evaluate(subject, run.settings, out=path, progress=report, static_from=shared)
        if not (path / REPORT).exists():
            write_report([path], path / REPORT)
    for done, plan in enumerate(profiles, start=len(runs)):
        if watch is not None:
            watch(done, total, plan.profile_folder, None)
        run_profile(plan, out / RUNS / plan.profile_folder, loader.device)
    return missing


def _static_part(run: PlannedRun, subject: Subject, path: Path) -> Path | None:
    """Return a finished run of the suite to copy the static model's records from, if there is one.

    None for a run that is finished itself, so that its records stay as they are.
    """
    if is_there(path / RUN) and read_run(path).status == "complete":
        return None
    prepared = prepare(subject, run.settings)
    others = sorted(other for other in path.parent.glob("*-suite-*") if other != path)
    return find_static_part(prepared.spec, prepared.plan, others)


def write_configuration(run: PlannedRun, out: Path) -> None:
    """Write the JSON file of the defense that the run's command names, if it names one."""
    path = run.configuration(out)
    if path is None or not isinstance(run.defense, DentConfig):
        return
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (run.defense.to_json() + "\n").encode())


def _within(watch: OnRun, done: int, total: int, name: str) -> Callable[[Progress], None]:
    return lambda state: watch(done, total, name, state)
