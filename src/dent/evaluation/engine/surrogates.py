"""The models that come with the package, to transfer attacks from."""

from torch import nn

from dent.data.registry import classes_of
from dent.evaluation.subject import Subject
from dent.evaluation.submission.submission import device_of
from dent.models.shipped_source import ShippedModels
from dent.models.weights import weights_digest


def at_hand(subject: Subject) -> dict[str, nn.Module]:
    """Return the shipped models of the subject's classes, by name, on its device.

    Without the static model itself, which attacks have anyway.
    """
    source, device = ShippedModels(), device_of(subject.model)
    own = weights_digest(subject.model)
    found: dict[str, nn.Module] = {}
    for card in source.cards():
        if classes_of(card.dataset) != tuple(subject.dataset.classes):
            continue
        model = source.load(card.name).eval().requires_grad_(requires_grad=False)
        if weights_digest(model) != own:
            found[card.name] = model.to(device)
    return found
