"""Check the static model's part of a run before any code of a defense is imported.

That code runs in the process of the checks, so it could change the static model, its attacks or the
checks themselves. What is checked before its import, it cannot change.
"""

from dataclasses import replace

from torch import nn

from dent.data import ImageDataset
from dent.evaluation.records.plan import units
from dent.evaluation.records.schema import UnitRecord
from dent.evaluation.records.spec import STATIC
from dent.evaluation.results.recorded_run import RecordedRun
from dent.evaluation.subject import Subject, threat_of
from dent.evaluation.verification.resubmit import Resubmission
from dent.models.weights import weights_digest


def static_problems(recorded: RecordedRun, model: nn.Module, images: ImageDataset) -> list[str]:
    """Submit the recorded images of the static model to it again, and return the problems.

    Args:
        recorded: A run with a static model that is the model itself, and with its images.
        model: The model of the run, in eval mode.
        images: Its dataset.
    """
    spec = recorded.run.spec
    if (weights_digest(model), images.digest) != (spec.model.weights, spec.dataset.digest):
        return ["the model or the dataset has not the digest on record"]
    alone = spec.model_copy(
        update={"defenses": tuple(each for each in spec.defenses if each.name == STATIC)}
    )
    own = {key: record for key, record in recorded.records.items() if record.defense == STATIC}
    reduced = replace(
        recorded,
        run=recorded.run.model_copy(update={"spec": alone}),
        records=own,
        challenges=(),
    )
    subject = Subject(model, images, {}, (), threat_of(spec.threat), spec.model.name)
    resubmission = Resubmission(reduced, subject)
    findings = [
        finding
        for unit in units(alone, recorded.plan)
        if isinstance(own.get(unit.key), UnitRecord)
        for finding in resubmission.check(unit)
    ]
    findings += resubmission.changed_predictions()
    return [each.problem for each in findings if each.problem is not None and not each.skipped]
