"""The limits of one server."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

_Seconds = Annotated[float, Field(gt=0, le=3600, allow_inf_nan=False)]


class Limits(BaseModel):
    """Limits on size, count, time and queue; each is an option of `dent serve`.

    The memory that waiting requests hold is at most `max_requests` times `max_body_bytes`, as much
    again for bodies that are arriving, and as much for decoded images (for PNG and JPEG:
    `max_batch_size` float32 images each).

    Attributes:
        max_batch_size: images in one batch, and so in one request.
        max_body_bytes: bytes of one request's body.
        max_requests: requests whose bodies have arrived and that one replica has not answered yet.
            The next one is refused with 503.
        timeout: seconds a request may take to arrive, and may wait from then on for its batch to
            start; afterwards it is refused (408, 504).
        deadline: seconds in which a request that names no deadline of its own should be answered,
            with fewer steps if need be; None gives such a request all steps.
        max_wait: seconds for which a request waits for others to share its batch. Counts only where
            the defense is batch-independent.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_batch_size: Annotated[int, Field(ge=1, le=65536)] = 128
    max_body_bytes: Annotated[int, Field(ge=1, le=2**31)] = 32 * 2**20
    max_requests: Annotated[int, Field(ge=1, le=65536)] = 64
    timeout: _Seconds = 30.0
    deadline: _Seconds | None = None
    max_wait: Annotated[float, Field(ge=0, le=60, allow_inf_nan=False)] = 0.005
