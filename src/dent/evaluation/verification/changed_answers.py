"""Answers that differ from those on record when images are submitted again, over a whole run."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dent.evaluation.engine.context import batches_of
from dent.evaluation.records.plan import Unit
from dent.evaluation.records.schema import JournalRecord, UnitRecord
from dent.evaluation.records.spec import STATIC
from dent.evaluation.results.recorded_run import RecordedRun
from dent.evaluation.submission.repeated import TOLERATED, may_change
from dent.evaluation.verification.findings import Finding
from dent.evaluation.verification.tolerance import favored, is_tie, result_changes


class ChangedAnswers:
    """A collection of the changed answers of a run, which says which of them are problems.

    Args:
        recorded: The run.
        same_place: Whether software and kind of device are the run's own. Then every change is a
            problem. Elsewhere, rounding may change a few answers.
    """

    def __init__(self, recorded: RecordedRun, *, same_place: bool) -> None:
        self._recorded = recorded
        self._same_place = same_place
        self._changed: dict[str, list[Finding]] = {}
        self._members: dict[str, int] = {}
        self._clear: list[Finding] = []
        # By defense and sample id: how often it was correct only as recorded, minus only now.
        self._leaning: dict[str, Counter[int]] = {}
        self._again: dict[str, JournalRecord] = {}

    def compare(
        self,
        unit: Unit,
        record: UnitRecord,
        served: Sequence[int | None],
        logits: Sequence[Tensor],
    ) -> None:
        """Compare the predictions of a unit with its record.

        Args:
            unit: The unit.
            record: Its record.
            served: The predictions now, one for each member; None where there is none.
            logits: Their logits, (N, classes) for each batch of the unit.
        """
        self._members[unit.key] = len(served)
        changed = [
            Finding(
                "served",
                unit.key,
                f"{unit.key}: member {member} is served {current}, recorded as {recorded}",
            )
            for member, (current, recorded) in enumerate(zip(served, record.served, strict=True))
            if current != recorded
        ]
        if changed:
            self._changed[unit.key] = changed
            self._weigh(unit, record, served, torch.cat(list(logits)))

    def keep(self, record: JournalRecord, fields: Mapping[str, Any]) -> None:
        """Keep the new values of a record for scoring the run again, if any differs from it."""
        if any(getattr(record, name) != value for name, value in fields.items()):
            self._again[record.key] = record.model_copy(update=dict(fields))

    def problems(self) -> list[Finding]:
        """Return the changes that are problems, after the last unit of the run."""
        return [*self.predictions(), *self._one_sided(), *self._scored_otherwise()]

    def predictions(self) -> list[Finding]:
        """Return the changed predictions that are problems by themselves."""
        return [*self._too_many(), *self._clearly_changed()]

    def _weigh(
        self, unit: Unit, record: UnitRecord, served: Sequence[int | None], logits: Tensor
    ) -> None:
        """Note whether the changed predictions of a unit are ties, and which side they favor."""
        batches = batches_of(self._recorded.plan, unit)
        members = [pair for each in batches for pair in zip(each.ids, each.labels, strict=True)]
        leaning = self._leaning.setdefault(unit.defense, Counter())
        answers = zip(record.served, served, members, strict=True)
        for member, (then, now, (id_, label)) in enumerate(answers):
            if then == now:
                continue
            leaning[id_] += (then == label) - (now == label)
            if unit.defense == STATIC and not is_tie(logits[member], then):
                problem = (
                    f"{unit.key}: member {member} is served {now}, recorded as {then}, and its "
                    "logits are no near tie: the static model gets other images or weights than "
                    "when it was recorded, or the record was edited"
                )
                self._clear.append(Finding("served", unit.key, problem))

    def _too_many(self) -> list[Finding]:
        """Return the changed predictions that are problems.

        On the run's own platform, these are all. Elsewhere, they are all if more than `TOLERATED`
        changed in the run, and otherwise only the predictions of units with too many changes.
        """
        changed = [finding for findings in self._changed.values() for finding in findings]
        if self._same_place or len(changed) > TOLERATED * sum(self._members.values()):
            return changed
        return [
            finding
            for key, findings in self._changed.items()
            if len(findings) > may_change(self._members[key])
            for finding in findings
        ]

    def _clearly_changed(self) -> list[Finding]:
        """Return the changed predictions of the static model that no rounding explains.

        It does not adapt and draws nothing, so elsewhere only near ties may turn out differently.
        """
        return [] if self._same_place else self._clear

    def _one_sided(self) -> list[Finding]:
        """Return the defenses that the changed predictions favor too often to be rounding.

        Honest changes go both ways: the same images are submitted twice. If attacks chose them by
        the first answers, more members are correct only now, which does not favor the record.
        """
        if self._same_place:
            return []
        return [Finding("served", None, problem) for problem in favored(self._leaning)]

    def _scored_otherwise(self) -> list[Finding]:
        """Return what changes in the result if the run is scored with the new answers."""
        if not self._again:
            return []
        recorded = self._recorded
        challenges = tuple(
            challenge.model_copy(
                update={"units": tuple(self._again.get(unit.key, unit) for unit in challenge.units)}
            )
            for challenge in recorded.challenges
        )
        records = {key: self._again.get(key, record) for key, record in recorded.records.items()}
        again = replace(recorded, records=records, challenges=challenges)
        return [
            Finding("verdict", None, problem)
            for problem in result_changes(recorded.result, again.result)
        ]
