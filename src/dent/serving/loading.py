"""Load the model, the defense and the engine of a server from its options, and warm them up."""

import os

import torch
from torch import Tensor

from dent import data, models
from dent.data.class_order import is_in_class_order
from dent.defenses import registry
from dent.errors import DataError
from dent.models.check import check_model
from dent.models.class_names import check_class_names
from dent.serving.app import Server
from dent.serving.engine import Engine
from dent.serving.metrics import Metrics
from dent.serving.options import ServerOptions

_REFERENCE = 128


def check(options: ServerOptions) -> None:
    """Load model, defense and dataset once on the CPU, so that errors appear before Ray starts.

    Raises:
        DentError: as in `load_server`.
    """
    _engine(options, torch.device("cpu"))


def load_server(options: ServerOptions) -> Server:
    """Load everything, then answer two images and the reference images to warm up.

    Raises:
        DentError: the model, the defense or the dataset cannot be loaded, or they do not fit
            together.
    """
    name = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    # Ray would limit the threads to the CPUs that it reserves for the replica, a separate option.
    torch.set_num_threads(options.threads or max(1, (os.cpu_count() or 1) // options.replicas))
    engine, images, classes = _engine(options, torch.device(name))
    engine.run(images[:2])  # a single image is not adapted by every defense, which then warns
    # One step is enough: the confidence before the first step does not depend on their number.
    steps = min(engine.steps, 1)
    confidences: list[float] = []
    for part in images.split(options.limits.max_batch_size):
        confidences += engine.run(part, steps).confidences()
    metrics = Metrics(confidences if options.dataset is not None else ())
    return Server(engine, options.limits, classes=classes, model=options.model, metrics=metrics)


def _engine(options: ServerOptions, device: torch.device) -> tuple[Engine, Tensor, tuple[str, ...]]:
    images, classes = _images(options)
    model = models.load(
        options.model, weights=options.weights, num_classes=len(classes) or None, device=device
    )
    if classes:
        check_model(model, len(classes), images[:2].to(device))
        check_class_names(model, classes)
    defense = registry.make(options.defense, model)
    return Engine(defense, images, device=device), images, classes


def _images(options: ServerOptions) -> tuple[Tensor, tuple[str, ...]]:
    """Return images like those that will be served, and the names of classes, empty if unknown."""
    if options.dataset is not None:
        if ":" in options.dataset:
            dataset = data.from_factory(options.dataset)
        else:
            dataset = data.load(options.dataset, root=options.data_root)
        if len(dataset) == 0:
            raise DataError(
                f"the dataset {options.dataset!r} is empty: the server needs images like those "
                "that it will get; without any, leave out --dataset and pass --shape"
            )
        size = min(_REFERENCE, len(dataset))
        # The first images of a dataset in the order of its classes would be of one class.
        step = len(dataset) / size if is_in_class_order(dataset) else 1
        images, _ = dataset.batch([int(index * step) for index in range(size)])
        return images, dataset.classes
    shape = options.shape or (3, 32, 32)
    return torch.rand(16, *shape, generator=torch.Generator().manual_seed(0)), ()
