"""The limits of one server."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

_Seconds = Annotated[float, Field(gt=0, le=3600, allow_inf_nan=False)]


class Limits(BaseModel):
    """Limits on size, count, time and queue; each is an option of `dent serve`.

    Waiting requests hold at most `max_requests` times `max_body_bytes` of memory. The same amount
    may be held by bodies that are arriving, and again by decoded images (for PNG and JPEG:
    `max_batch_size` float32 images for each request).

    Attributes:
        max_batch_size: images in one batch, and so in one request.
        max_body_bytes: bytes of one request's body.
        max_requests: requests whose bodies have arrived and that one replica has not answered yet.
            The next one is refused with 503.
        timeout: seconds that a request may take to arrive, and that it may then wait for its batch
            to start. After that it is refused (408, 504).
        deadline: seconds within which a request without its own deadline should be answered, with
            fewer steps if necessary. None gives such a request all steps.
        max_wait: seconds for which a request waits for others to share its batch. It has no effect
            if the defense is batch-dependent.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_batch_size: Annotated[int, Field(ge=1, le=65536)] = 128
    max_body_bytes: Annotated[int, Field(ge=1, le=2**31)] = 32 * 2**20
    max_requests: Annotated[int, Field(ge=1, le=65536)] = 64
    timeout: _Seconds = 30.0
    deadline: _Seconds | None = None
    max_wait: Annotated[float, Field(ge=0, le=60, allow_inf_nan=False)] = 0.005
