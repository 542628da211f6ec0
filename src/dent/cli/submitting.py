"""Read the options of a check of a row, and say how to submit one, in a terminal."""

from pathlib import Path

from dent.board.pack import Packed
from dent.board.submission import SUBMISSION, RowSubmission
from dent.board.verification import Recording
from dent.cli.console import OUT
from dent.errors import ConfigError


def say_next(folder: Path, submission: RowSubmission, packed: Packed) -> None:
    """Print how to open the pull request."""
    place = f"board/{submission.track.replace('/', '_')}/{folder.name}"
    images = "" if packed.images is None else f", and {packed.images} with the images"
    for line in (
        f"Written: {folder / SUBMISSION}, and {packed.records} with the records{images}.",
        "To submit it:",
        f"  1. Fork the repository of torch-dent, and unpack {packed.records} into {place}/.",
        f"  2. Copy {folder / SUBMISSION} there.",
        "  3. Upload the archive of images, and add its URL and SHA-256 to submission.json.",
        f'  4. Open a pull request called "Row: {submission.name} on {submission.track}".',
        "A maintainer then draws the other half of the samples, and runs `dent board check`.",
    ):
        OUT.print(line, markup=False, soft_wrap=True)


def recording(by: str | None, nonce_source: str | None) -> Recording | None:
    """Return what to record; None without `--record`.

    Raises:
        ConfigError: There is a source, but nothing to record it with.
    """
    if by is None:
        if nonce_source is not None:
            raise ConfigError("--nonce-source is recorded with a check: add --record NAME.")
        return None
    if nonce_source is not None and not nonce_source.strip():
        raise ConfigError("--nonce-source expected a text that says where the nonce comes from.")
    return Recording(by, nonce_source)
