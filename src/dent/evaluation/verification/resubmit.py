"""Submit the recorded images of a run again, and compare the answers."""

import operator
from collections.abc import Iterator
from typing import Any, Final

import torch
from torch import Tensor

from dent.evaluation.engine.adversarial import assembled, carried_images
from dent.evaluation.engine.carry import carried
from dent.evaluation.engine.context import batches_of, open_run
from dent.evaluation.engine.execute import answer_fields, submit_once, submit_unit
from dent.evaluation.records.image_digest import digest_of
from dent.evaluation.records.plan import Unit, units
from dent.evaluation.records.provenance import same_platform
from dent.evaluation.records.schema import (
    CertificateRecord,
    ChallengeRecord,
    ProbeRecord,
    UnitRecord,
)
from dent.evaluation.records.spec import STATIC
from dent.evaluation.results.recorded_run import RecordedRun
from dent.evaluation.subject import Prepared, Subject, threat_of
from dent.evaluation.submission.measures import mean_loss
from dent.evaluation.submission.repeated import CLOSE, close, may_change
from dent.evaluation.submission.submitter import Answers
from dent.evaluation.verification.changed_answers import ChangedAnswers
from dent.evaluation.verification.findings import Finding
from dent.evaluation.verification.other_seeds import OtherSeeds
from dent.evaluation.verification.probes import RepeatedProbes
from dent.evaluation.verification.read_only import ReadOnlyRecords
from dent.evaluation.verification.record_checks import DROPPED
from dent.evaluation.verification.tolerance import trace_problem
from dent.storage.errors import RecordError
from dent.support.devices import device_of
from dent.support.plural import agreeing, counted

_ONE_ANSWER: Final = "an older version recorded only one answer per batch"


class Resubmission:
    """A checker of the units of a run, one by one and in order.

    Args:
        recorded: The run.
        subject: The evaluated objects.
    """

    def __init__(self, recorded: RecordedRun, subject: Subject) -> None:
        spec, plan = recorded.run.spec, recorded.plan
        subject = subject.sized(spec.settings)
        self._recorded = recorded
        self._run = open_run(Prepared(subject, spec, plan), ReadOnlyRecords(recorded))
        self._threat = threat_of(spec.threat)
        self._same_place = same_platform(
            (
                *recorded.run.sessions,
                *(challenge.session for challenge in recorded.challenges),
            ),
            device_of(subject.model),
            bit_exact=False,
        )
        self._complete = recorded.complete_fields
        self._changes = ChangedAnswers(recorded, same_place=self._same_place)
        self._probes = RepeatedProbes(
            self._run, recorded, self._changes, same_place=self._same_place
        )
        self._other_seeds = OtherSeeds(self._run)
        # By defense: which other answers lie apart now, with a unit; and which do as recorded.
        self._apart_now: dict[tuple[str, str], str] = {}
        self._apart_then: set[tuple[str, str]] = set()

    def check(self, unit: Unit) -> Iterator[Finding]:
        """Check a recorded unit."""
        record = self._recorded.records[unit.key]
        if isinstance(record, ProbeRecord):
            yield from self._probes.probe(unit, record)
        elif isinstance(record, CertificateRecord):
            yield from self._probes.certificate(unit, record)
        else:
            yield from self._check_submission(unit, record)

    def check_first(self) -> Iterator[Finding]:
        """Submit one adversarial version of each batch to each defense, before any natural image.

        A defense whose copies share a memory may have learned the natural images during the run.
        In a new process, this memory is empty until the first natural images are submitted. Each
        batch is also submitted under a seed that nobody can know.
        """
        run = self._run
        for batch in run.plan.batches:
            for defense in run.spec.defenses:
                unit = self._strongest(defense.name, batch.index)
                record = None if unit is None else self._recorded.records[unit.key]
                if unit is None or not isinstance(record, UnitRecord):
                    continue
                try:
                    adversarial = self._images_of(unit, record)
                except RecordError:
                    continue  # `check` reports it
                if adversarial is None:
                    continue
                served = submit_once(run, unit, adversarial).predictions
                changed = sum(map(operator.ne, served, record.served))
                problem: str | None = None
                allowed = 0 if self._same_place else may_change(batch.size)
                if self._complete and defense.name != STATIC:
                    problem = self._other_seeds.problem(unit, record, adversarial, allowed)
                if changed > allowed:
                    problem = (
                        f"{unit.key}: {counted(changed, 'member')} {agreeing(changed, 'are')} "
                        "served otherwise before the defense has seen any natural image"
                    )
                yield Finding("served", unit.key, problem)

    def _strongest(self, defense: str, index: int) -> Unit | None:
        """Return the attack with the highest loss on a batch; if there is none, a transfer."""
        found = [
            (record.kind == "attack", record.loss or 0.0, -place, unit)
            for place, unit in enumerate(units(self._run.spec, self._run.plan))
            if (unit.defense, unit.batch) == (defense, index)
            and unit.kind in ("attack", "transfer")
            and isinstance(record := self._recorded.records.get(unit.key), UnitRecord)
        ]
        return max(found)[-1] if found else None

    def check_challenge(self, challenge: ChallengeRecord) -> Iterator[Finding]:
        """Check the images of a challenge, and submit them again."""
        for record in challenge.units:
            unit = Unit("challenge", record.defense, record.attack, record.batch)
            yield from self._check_submission(unit, record)

    def unlike_digest(self, challenge: ChallengeRecord) -> str | None:
        """Return a message if the digest of a challenge is not that of its images."""
        try:
            images = {
                unit.batch: self._recorded.adversarial(unit)
                for unit in challenge.units
                if unit.batch is not None
            }
        except RecordError:
            return None  # `check_challenge` reports it
        if digest_of(images, self._run.plan) == challenge.digest:
            return None
        return (
            f"the digest {challenge.short} of the challenge by {challenge.by} is not that of its "
            "images: it was edited, or an older version recorded the digest of their file"
        )

    def _check_submission(self, unit: Unit, record: UnitRecord) -> Iterator[Finding]:
        """Check the images of a unit, and submit them again."""
        try:
            adversarial = self._images_of(unit, record)
        except RecordError as error:
            dropped = self._run.spec.settings.tensors == "drop" and unit.kind != "challenge"
            for check in ("tensors", "threat model", "served") if dropped else ("tensors",):
                yield Finding(check, unit.key, DROPPED if dropped else str(error), skipped=dropped)
            return
        if adversarial is not None:
            yield Finding("tensors", unit.key)
            yield Finding("threat model", unit.key, self._outside(unit, record, adversarial))
            if unit.kind == "assembled":
                yield Finding("tensors", unit.key, self._sources(unit, record))
            if unit.kind == "attack":
                yield Finding("tensors", unit.key, self._carried(unit, record, adversarial))
        yield Finding("served", unit.key, self._served(unit, record, adversarial))
        if not self._complete:
            yield Finding("served", unit.key, _ONE_ANSWER, skipped=True)

    def problems_of_changes(self) -> list[Finding]:
        """Return the problems with changed answers that only the whole run shows.

        Call it after the last unit.
        """
        return [
            *self._changes.problems(),
            *(Finding("served", None, problem) for problem in self._other_seeds.problems()),
            *(Finding("served", None, problem) for problem in self._newly_apart()),
        ]

    def _newly_apart(self) -> Iterator[str]:
        """Yield the defenses that answer a batch in two ways now, and nowhere as recorded.

        In one process on a CPU, equal queries get equal answers, whatever the machine is. On a GPU,
        a defense that adapts may answer differently by chance.
        """
        if device_of(self._run.subject.model).type != "cpu":
            return
        for (defense, name), key in self._apart_now.items():
            if (defense, name) not in self._apart_then:
                yield f"{defense}: answers lie apart now ({name}), first in {key}, and none did"

    def changed_predictions(self) -> list[Finding]:
        """Return the changed predictions that are problems, after the last unit."""
        return self._changes.predictions()

    def _images_of(self, unit: Unit, record: UnitRecord) -> Tensor | None:
        """Return the images that a unit submitted, (attacked members, C, H, W); None if natural.

        Raises:
            RecordError: They were not kept, are damaged, or are not what the record describes.
        """
        if unit.kind == "natural":
            return None
        if unit.kind == "assembled":
            return assembled(self._run, unit, batches_of(self._run.plan, unit)[0])[0]
        if record.tensor is None:
            raise RecordError(f"{unit.key} has no tensor on record")
        if unit.kind == "transfer":
            source = Unit("attack", STATIC, unit.attack, unit.batch)
            static = self._recorded.records.get(source.key)
            if not isinstance(static, UnitRecord) or static.tensor != record.tensor:
                raise RecordError(f"{unit.key} names another tensor than {source.key}")
        batch = batches_of(self._run.plan, unit)[0]
        image = tuple(self._run.load(batch)[0].shape[1:])
        if record.tensor.shape[1:] != image:  # checked before reading: it can fill a disk
            raise RecordError(
                f"{unit.key} has images {record.tensor.shape[1:]}, the dataset's are {image}"
            )
        return self._recorded.adversarial(record)

    def _outside(self, unit: Unit, record: UnitRecord, adversarial: Tensor) -> str | None:
        """Return a message if images lie outside the threat model or use another share of eps."""
        natural = torch.cat(
            [
                self._run.load(batch)[0][: batch.attacked].cpu()
                for batch in batches_of(self._run.plan, unit)
            ]
        )
        if adversarial.shape != natural.shape:
            return f"{unit.key}: {tuple(adversarial.shape)} for images of {tuple(natural.shape)}"
        excess = self._threat.check(adversarial, natural)
        outside = int((excess > 0).sum())
        if not outside:
            return self._unlike_used(unit, record, adversarial, natural)
        return (
            f"{unit.key}: {counted(outside, 'image')} {agreeing(outside, 'lie')} outside "
            f"{self._threat}, by up to {excess.max():.3g}"
        )

    def _unlike_used(
        self, unit: Unit, record: UnitRecord, adversarial: Tensor, natural: Tensor
    ) -> str | None:
        if not self._threat.eps:
            return None
        if record.used is None:
            reported = self._complete and unit.kind in ("attack", "challenge")
            return f"{unit.key} does not say which share of eps it uses" if reported else None
        used = (self._threat.distance(adversarial, natural) / self._threat.eps).tolist()
        if all(
            abs(share - recorded) <= CLOSE
            for share, recorded in zip(used, record.used, strict=True)
        ):
            return None
        return f"{unit.key}: the images use another share of eps than recorded"

    def _sources(self, unit: Unit, record: UnitRecord) -> str | None:
        _, sources = assembled(self._run, unit, batches_of(self._run.plan, unit)[0])
        return None if sources == record.sources else f"{unit.key} is assembled from other attacks"

    def _carried(self, unit: Unit, record: UnitRecord, adversarial: Tensor) -> str | None:
        """Compare the members that an attack left out with the ones that had fallen before it."""
        if unit.batch is None:  # the published protocol attacks every member
            return None if record.carried is None else f"{unit.key} leaves out members"
        batch = batches_of(self._run.plan, unit)[0]
        broke = carried(self._run.spec, batch, unit, self._run.store.done)
        left_out = tuple(source is not None for source in broke)
        if record.carried != (left_out if any(left_out) else None):
            return f"{unit.key} leaves out other members than those that had fallen before it"
        if record.carried is None:
            return None
        try:
            expected = carried_images(self._run, broke, self._run.load(batch)[0].cpu())
        except RecordError as error:
            return str(error)
        rows = torch.tensor(record.carried)
        if not torch.equal(adversarial[rows], expected[: batch.attacked][rows]):
            return f"{unit.key} has other images of members that had fallen before it"
        return None

    def _served(self, unit: Unit, record: UnitRecord, adversarial: Tensor | None) -> str | None:
        """Submit a unit again, and return how its answers differ from the record.

        Changed predictions are only noted: the whole run shows whether they are a problem.
        """
        answers = submit_unit(self._run, unit, adversarial)
        submissions = [answer.first for answer in answers]
        served = tuple(each for submission in submissions for each in submission.predictions)
        logits = [submission.logits for submission in submissions]
        self._changes.compare(unit, record, served, logits)
        self._changes.keep(record, {"served": served, **self._fields(answers, record)})
        self._apart_then |= {(unit.defense, name) for name in record.apart}
        if self._complete:
            for name in answer_fields(answers)["apart"]:
                self._apart_now.setdefault((unit.defense, name), unit.key)
        loss = mean_loss(submissions, batches_of(self._run.plan, unit))
        if record.loss is None:
            unlike = self._complete and loss is not None
        else:
            unlike = not close(loss, record.loss)
        if unlike:
            return f"{unit.key}: the loss is not as recorded"
        problem = self._views_problem(unit, answers, record)
        return problem or trace_problem(unit, submissions, record.trace)

    def _fields(self, answers: list[Answers], record: UnitRecord) -> dict[str, Any]:
        """Return the fields of the other answers; empty for older records, which have only one."""
        if not self._complete:
            return {}
        fields = answer_fields(answers)
        names = sorted(record.apart.keys() | fields["apart"].keys())
        values = (record.apart, fields["apart"])
        fields["apart"] = {name: max(apart.get(name, 0.0) for apart in values) for name in names}
        return fields

    def _views_problem(self, unit: Unit, answers: list[Answers], record: UnitRecord) -> str | None:
        """Compare views and draws with the record, only on the run's own platform."""
        if not (self._complete and self._same_place):
            return None
        fields = answer_fields(answers)
        for name in ("views", "draws"):
            if fields[name] != getattr(record, name):
                return f"{unit.key}: {name} are not those recorded"
        if fields["apart"].keys() != record.apart.keys():
            return f"{unit.key}: other answers lie apart than is recorded"
        return None
