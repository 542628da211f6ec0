"""The options of a server: everything that a replica needs to load itself, as plain data."""

import math
from typing import Annotated, Final, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from dent.serving.limits import Limits

_Positive = Annotated[int, Field(ge=1, le=2**16)]
_MOST_VALUES: Final = 2**24
"""Largest number of values in an image. Startup computes some images of the shape."""


class ServerOptions(BaseModel):
    """The options of `dent serve`, and the arguments of the application on a Ray cluster.

    Attributes:
        model: name of the model, as for `dent.models.load`.
        weights: a weights file, or None.
        defense: a name from docs/defenses.md, a JSON file, or module:factory.
        dataset: the dataset that the model was trained for, or module:factory. It gives the names
            of classes, the shape of images, and the confidence that later inputs are compared
            with. It excludes `shape`.
        data_root: folder of datasets, or None.
        shape: channels, height and width of images, if there is no dataset.
        device: for example cpu, cuda or cuda:1; by default the GPU if there is one.
        replicas: number of copies of the model.
        threads: threads of PyTorch in each replica; by default the machine's cores divided by the
            number of replicas.
        num_cpus: CPUs that Ray reserves for a replica; less than one lets replicas share a core.
        num_gpus: GPUs that Ray reserves for a replica.
        limits: limits of each replica.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = "resnet-14-2-linf"
    weights: str | None = None
    defense: str = "dent+"
    dataset: str | None = None
    data_root: str | None = None
    shape: tuple[_Positive, _Positive, _Positive] | None = None
    device: str | None = None
    replicas: Annotated[int, Field(ge=1, le=1024)] = 1
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    num_cpus: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1
    num_gpus: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0
    limits: Limits = Limits()

    @field_validator("shape")
    @classmethod
    def _of_a_servable_size(cls, shape: tuple[int, int, int] | None) -> tuple[int, int, int] | None:
        values = math.prod(shape or ())
        if values > _MOST_VALUES:
            raise ValueError(f"an image has {values} values, and at most {_MOST_VALUES} are served")
        return shape

    @model_validator(mode="after")
    def _one_source_of_the_shape(self) -> Self:
        if (self.dataset is None) == (self.shape is None):
            raise ValueError("name either a dataset or a shape of images")
        return self
