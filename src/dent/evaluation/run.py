"""Run an evaluation: record the units of its plan one by one, and derive the result from them."""

import os
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch

from dent.attacks.adaptive.static_ascents import kept_in
from dent.attacks.querier import OnPass
from dent.data.class_order import cheap_labels, is_in_class_order
from dent.errors import ConfigError, FewClassesWarning
from dent.evaluation.engine.context import open_run
from dent.evaluation.engine.execute import execute
from dent.evaluation.engine.progress import OnProgress, Tracker
from dent.evaluation.engine.rehearsal import rehearse
from dent.evaluation.engine.sessions import OpenSession, Sessions
from dent.evaluation.engine.unchanged import check_unchanged
from dent.evaluation.records.folder import ASCENTS, RESULT, RUN, RunFolder
from dent.evaluation.records.plan import Group, Plan, Unit, groups, rounds, units
from dent.evaluation.records.provenance import new_session
from dent.evaluation.records.schema import UnitRecord
from dent.evaluation.records.shard import Shard
from dent.evaluation.records.spec import STATIC, EvaluationSpec, Settings
from dent.evaluation.records.store import Memory, Store
from dent.evaluation.results.decision import superfluous, units_left
from dent.evaluation.results.result import EvaluationResult
from dent.evaluation.results.summary import summarize, summarize_folder
from dent.evaluation.static_part import take_static_part
from dent.evaluation.subject import Prepared, Subject, prepare
from dent.support.devices import device_of
from dent.support.plural import counted
from dent.support.warned import warn


def evaluate(
    subject: Subject,
    settings: Settings | None = None,
    *,
    out: Path | None = None,
    progress: OnProgress | None = None,
    shard: Shard | None = None,
    static_from: Path | None = None,
) -> EvaluationResult:
    """Attack all defenses on the same samples with the same budget, and score the submissions.

    Args:
        subject: Model, dataset, defenses, attacks and threat model.
        settings: How the samples form batches, and what else runs.
        out: The run folder. A new or empty folder is set up. A folder with the same evaluation is
            resumed where it stopped, for whatever reason. If None, only the result is kept.
        progress: Called before, during and after every unit. An exception that it raises ends the
            run, which can then be resumed.
        shard: Run only this part. The result is `partial` until all parts are in one folder
            (`dent.distributed.merge`).
        static_from: A run folder of the same evaluation with other defenses. Its records of the
            static model are copied, not computed again.

    Returns:
        The result, also written to `out/result.json`.

    Raises:
        ConfigError: The settings or names are not valid, or do not fit the dataset.
        InputError: An object is not a defense, does not return logits, or writes into the model.
        SpecMismatchError: `out` holds another evaluation, or a defense no longer gives the answers
            that are recorded there. The message lists the fields or answers that differ.
        LockedError: Another process is writing to `out`.
        RecordError: `out` is damaged, holds other files, or cannot be written to.

    Example:
        >>> subject = Subject(model, dataset, {"dent+": Dent(model)}, [make("apgd-ce")], threat)
        >>> result = evaluate(subject, Settings(n=256), out=Path("runs/first"))
        >>> result.defenses["dent+"].worst.served.share
    """
    return evaluate_with(
        subject,
        settings,
        run_in_process,
        out=out,
        progress=progress,
        shard=shard,
        static_from=static_from,
    )


@dataclass(frozen=True)
class RemainingWork:
    """The remaining work of a run, and the destination of its records.

    Attributes:
        prepared: The prepared evaluation.
        rounds: The rounds of independent groups of units. A shard by attack has two rounds: all
            probes, which its attacks need, and its own groups.
        store: The store of the records. Existing records are kept.
        sessions: The processes that work on the run.
        tracker: The progress of the run so far.
        progress: Called with the progress.
        is_shard: Whether other processes run the rest. If so, no defense is decided early, because
            a shard does not know the records of the others.
    """

    prepared: Prepared
    rounds: tuple[tuple[Group, ...], ...]
    store: Store
    sessions: Sessions
    tracker: Tracker
    progress: OnProgress | None
    is_shard: bool = False

    def rounds_to_run(self) -> Iterator[tuple[Group, ...]]:
        """Yield the rounds one after another, without defenses that are already decided.

        Before each round, this tells the tracker which units are left out. After the last one, it
        drops all tensors.
        """
        decided: set[str] = set()
        for groups_of_round in self.rounds:
            fresh = self._decided() - decided
            decided |= fresh
            self.tracker.leave_out(
                unit
                for group in self._all()
                for unit in self.unrecorded(group)
                if unit.defense in fresh
            )
            yield tuple(group for group in groups_of_round if group[0].defense not in decided)
        for group in self._all():
            self._forget(group)

    def _decided(self) -> AbstractSet[str]:
        if self.is_shard:
            return set()
        return superfluous(self.prepared.spec, self.prepared.plan, self.store.done)

    def _all(self) -> Iterator[Group]:
        return chain.from_iterable(self.rounds)

    def unrecorded(self, group: Sequence[Unit]) -> tuple[Unit, ...]:
        """Return the units of a group that are not recorded."""
        return tuple(unit for unit in group if unit.key not in self.store.done)

    def needed(self, group: Group) -> tuple[Unit, ...]:
        """Return the units of other groups that a group needs: of its batch, and probes."""
        if self.prepared.spec.schedule == "by-batch":
            return ()
        names = {STATIC, *(unit.defense for unit in group)}
        return tuple(
            unit
            for other in self._all()
            for unit in other
            if unit.defense in names
            and (unit.kind == "probe" or unit.batch == group[0].batch)
            and unit not in group
        )

    def count(self, unit: Unit, worker: OpenSession) -> None:
        """Count a recorded unit."""
        worker.count(self.store.done[unit.key])
        self.tracker.count(unit, self.store.done[unit.key])

    def close(self, group: Sequence[Unit]) -> None:
        """Drop the tensors of a group, whose units are all recorded.

        In a run by attack, later rounds need them, so they stay until the last round.
        """
        if self.prepared.spec.schedule == "by-batch":
            self._forget(group)

    def _forget(self, group: Sequence[Unit]) -> None:
        for unit in group:
            record = self.store.done.get(unit.key)
            if isinstance(record, UnitRecord) and unit.kind == "attack":
                self.store.forget(record)

    def tell(self, *running: tuple[Unit, float]) -> None:
        """Report the progress of the run."""
        if self.progress is not None:
            self.progress(self.tracker.state(running, self.sessions.elapsed))


RunUnits = Callable[[RemainingWork], None]
"""A function that makes all missing records, in this process or in others."""


@torch.inference_mode(mode=False)  # a caller's would block gradients
def evaluate_with(
    subject: Subject,
    settings: Settings | None,
    run_units: RunUnits,
    *,
    out: Path | None,
    progress: OnProgress | None,
    shard: Shard | None,
    static_from: Path | None = None,
    in_parts: bool = True,
) -> EvaluationResult:
    """Evaluate as `evaluate` does, but run the units by `run_units`.

    If not `in_parts`, the run stops only between attacks, and not between the batches of one. The
    other arguments are the same.
    """
    if torch.get_default_dtype() != torch.float32:
        raise ConfigError(
            f"torch.get_default_dtype() is {torch.get_default_dtype()}, and evaluations draw and "
            "compute in float32: call torch.set_default_dtype(torch.float32). A model may compute "
            "in another precision inside."
        )
    settings = settings or Settings()
    prepared = prepare(subject, settings)
    _warn_of_missing_classes(prepared)
    unit_rounds = rounds_of(shard, prepared.spec, prepared.plan, in_parts=in_parts)
    todo = [unit for unit_groups in unit_rounds for group in unit_groups for unit in group]

    if out is None or not os.path.exists(Path(out) / RUN):  # a resumed run was rehearsed already
        rehearse(prepared, todo)

    def work(store: Store, sessions: Sessions) -> RemainingWork:
        tracker = Tracker(prepared, todo)
        for unit in todo:
            if unit.key in store.done:
                tracker.count(unit, store.done[unit.key])
        return RemainingWork(
            prepared, unit_rounds, store, sessions, tracker, progress, is_shard=shard is not None
        )

    if out is not None:
        todo_here = None if shard is None else todo
        return _evaluate_in_folder(prepared, Path(out), static_from, todo_here, work, run_units)
    if static_from is not None:
        raise ConfigError("static_from is for a run in a folder: give out, too")
    return _evaluate_in_memory(prepared, work, run_units)


_Work = Callable[[Store, Sessions], RemainingWork]
"""A function that returns the work that a store lacks."""


def _evaluate_in_memory(prepared: Prepared, work: _Work, run_units: RunUnits) -> EvaluationResult:
    spec, plan, memory = prepared.spec, prepared.plan, Memory()
    with Sessions(None, plan) as sessions:
        run_units(work(memory, sessions))
    count = sum(1 for _ in units(spec, plan))
    return summarize(spec, plan, memory.done, count, sessions.sessions)


def _evaluate_in_folder(
    prepared: Prepared,
    out: Path,
    static_from: Path | None,
    todo: Sequence[Unit] | None,
    work: _Work,
    run_units: RunUnits,
) -> EvaluationResult:
    """Set up or resume a run folder, run what is left, and write the result.

    Args:
        prepared: The prepared evaluation.
        out: The folder.
        static_from: A run folder whose records of the static model are copied first.
        todo: The units of a shard; None if this is no shard.
        work: Returns the work that the folder lacks.
        run_units: Does this work.
    """
    spec, plan = prepared.spec, prepared.plan
    with closing(RunFolder(out, spec, plan)) as folder:
        if static_from is not None:
            take_static_part(folder, static_from)
        waiting = units_left(spec, plan, folder.done) if todo is None else todo
        if any(unit.key not in folder.done for unit in waiting):
            check_unchanged(prepared, folder.done, folder.run.sessions)
            with Sessions(folder, plan) as sessions, _ascents_kept(spec, out, static_from):
                run_units(work(folder, sessions))
        _settle(folder, plan)
        result = summarize_folder(folder, plan)
        folder.write(RESULT, result)
    return result


def _settle(folder: RunFolder, plan: Plan) -> None:
    """Record the status of a run on which no unit ran, because none was left here."""
    if folder.run.status != "complete" and not units_left(folder.spec, plan, folder.done):
        folder.update(status="complete")  # a killed process, or copied records, left nothing
    elif folder.run.status == "running":
        folder.update(status="partial")  # a shard without units of its own, or a killed one


def _warn_of_missing_classes(prepared: Prepared) -> None:
    """Warn if the attacked images are of few classes only because the dataset is sorted by them."""
    dataset, settings = prepared.subject.dataset, prepared.spec.settings
    if settings.ids is not None or not is_in_class_order(dataset):
        return
    chosen = [label for batch in prepared.plan.batches for label in batch.labels[: batch.attacked]]
    classes = len(set(cheap_labels(dataset) or ()))
    present = len(set(chosen))
    if present < min(classes, len(chosen)):
        warn(
            f"the first {counted(len(chosen), 'image')} of {dataset.name} have only {present} of "
            f"its {counted(classes, 'class')}, because it is in the order of its classes: choose "
            "images of all classes by their ids (--ids, in Python Settings(ids=...)), or take all.",
            FewClassesWarning,
        )


def rounds_of(
    shard: Shard | None, spec: EvaluationSpec, plan: Plan, *, in_parts: bool = True
) -> tuple[tuple[Group, ...], ...]:
    """Return the rounds of a shard; of the whole run if it is None.

    In a run by attack, every shard makes all probes: its attacks and certificates depend on them.

    Args:
        shard: The part to run.
        spec: The specification.
        plan: Its batches.
        in_parts: Whether to split an attack of a whole run into rounds.
    """
    if shard is None:
        return tuple(rounds(spec, plan, in_parts=in_parts))
    every = tuple(groups(spec, plan))
    if spec.schedule == "by-batch":
        return (shard.of_all(every),)
    probes = tuple(group for group in every if group[0].kind == "probe")
    return probes, shard.of_all(group for group in every if group[0].kind != "probe")


def _ascents_kept(
    spec: EvaluationSpec, out: Path, static_from: Path | None
) -> AbstractContextManager[None]:
    """Keep ascents on the static model in the folder of the run, unless images are dropped."""
    if spec.settings.tensors == "drop":
        return nullcontext()
    folders = [Path(each) / ASCENTS for each in (out, static_from) if each is not None]
    return kept_in(*folders)


def run_in_process(work: RemainingWork) -> None:
    """Run the units in this process, one group after another."""
    run = open_run(work.prepared, work.store)
    worker = work.sessions.open(new_session(device_of(work.prepared.subject.model)))
    for unit_groups in work.rounds_to_run():
        for group in unit_groups:
            for unit in work.unrecorded(group):
                work.tell((unit, 0.0))
                execute(run, unit, _within(work, unit))
                work.count(unit, worker)
            work.close(group)
    work.tell()


def _within(work: RemainingWork, unit: Unit) -> OnPass | None:
    if work.progress is None:
        return None
    return lambda done, planned: work.tell((unit, done / planned if planned else 0.0))
