"""The reasons why a request is refused: an HTTP status and a code that programs can read."""

from dent.errors import DentError


class RefusedError(DentError):
    """A request that is refused, or cannot be answered in time.

    Args:
        status: HTTP status.
        code: short name of the reason, also the label of the metric.
        message: what was expected, what was received, and what to do.
        image: position of the image at fault in the request; None if no single image is.
        retry_after: seconds after which to try again; None if that does not help.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        image: int | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.image = image
        self.retry_after = retry_after


def malformed(message: str, image: int | None = None) -> RefusedError:
    """Return the error for a body that is not what its content type says (400)."""
    return RefusedError(400, "malformed", message, image=image)


def too_large(message: str) -> RefusedError:
    """Return the error for too many bytes or images (413)."""
    return RefusedError(413, "too-large", message)


def unsupported(message: str) -> RefusedError:
    """Return the error for a content type or encoding that the server does not read (415)."""
    return RefusedError(415, "unsupported-type", message)


def invalid(message: str, image: int | None = None) -> RefusedError:
    """Return the error for a well-formed body that does not fit the model (422)."""
    return RefusedError(422, "invalid", message, image=image)


def non_finite(message: str, image: int) -> RefusedError:
    """Return the error for an image that holds NaN or infinity (422)."""
    return RefusedError(422, "non-finite", message, image=image)
