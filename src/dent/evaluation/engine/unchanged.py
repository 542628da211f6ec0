"""Check that a resumed run still evaluates the objects that its records are of.

The identity of a run covers the weights of modules, but no code, no weights of other objects, and
no buffers outside of a state dict. So one recorded batch is submitted again.
"""

from collections.abc import Iterator, Mapping, Sequence

from dent.evaluation.records.plan import Batch, Unit
from dent.evaluation.records.probe_answers import stateful
from dent.evaluation.records.provenance import same_platform
from dent.evaluation.records.schema import JournalRecord, ProbeRecord, Session, UnitRecord
from dent.evaluation.subject import Prepared
from dent.evaluation.submission.measures import mean_loss
from dent.evaluation.submission.repeated import close, may_change
from dent.evaluation.submission.stream import Stream, serve_seed
from dent.evaluation.submission.submission import Submission, submit
from dent.storage.errors import SpecMismatchError
from dent.support.devices import device_of
from dent.support.plural import counted


def check_unchanged(
    prepared: Prepared, done: Mapping[str, JournalRecord], sessions: Sequence[Session]
) -> None:
    """Submit the first recorded natural batch of each defense again, and compare the answers.

    A defense that keeps state that its copies share is left out: what it answers may depend on
    earlier queries.

    Args:
        prepared: The prepared evaluation.
        done: The records of the run, by key.
        sessions: The processes that made them.

    Raises:
        SpecMismatchError: A defense no longer gives the recorded answers.
    """
    subject, plan, settings = prepared.subject, prepared.plan, prepared.spec.settings
    device = device_of(subject.model)
    same_place = same_platform(sessions, device, bit_exact=False)
    lineup = subject.lineup(settings)
    stream = Stream(subject, lineup, plan.batches, settings.seed)
    for name in lineup:
        probe = done.get(Unit("probe", name, None, 0).key)
        found = next(_natural(name, plan.batches, done), None)
        if found is None or not isinstance(probe, ProbeRecord) or _remembers(probe):
            continue
        batch, record = found
        x, _ = subject.dataset.batch(batch.positions)
        seed = serve_seed(settings.seed, batch.index)
        defense = stream.origin(name, batch.index).new(seed).defense
        answer = submit(defense, x.to(device), seed=seed)
        problem = _difference(answer, batch, record, same_place=same_place)
        if problem is not None:
            what = f"{name}: {problem} in batch {batch.index}"
            raise SpecMismatchError(
                f"the run cannot be resumed, because {what}: its model, its weights or its code "
                "has changed since. Restore it, or choose another folder",
                (what,),
            )


def _natural(
    name: str, batches: Sequence[Batch], done: Mapping[str, JournalRecord]
) -> Iterator[tuple[Batch, UnitRecord]]:
    for batch in batches:
        record = done.get(Unit("natural", name, None, batch.index).key)
        if isinstance(record, UnitRecord):
            yield batch, record


def _remembers(probe: ProbeRecord) -> bool:
    return stateful(probe) or bool(probe.shares) or probe.uncopied is not None


def _difference(
    answer: Submission, batch: Batch, record: UnitRecord, *, same_place: bool
) -> str | None:
    changed = sum(now != then for now, then in zip(answer.predictions, record.served, strict=True))
    if changed > may_change(batch.size):
        return f"{counted(changed, 'prediction')} of {batch.size} would not be as recorded"
    loss = mean_loss([answer], [batch])
    same = loss is None if record.loss is None else close(loss, record.loss)
    if same_place and not same:
        return f"the loss would be {loss}, and {record.loss} is recorded"
    return None
