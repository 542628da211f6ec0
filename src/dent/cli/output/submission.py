"""Print how to submit a row of the board."""

import hashlib
from pathlib import Path

from dent.board.pack import Packed
from dent.board.submission import SUBMISSION, RowSubmission
from dent.cli import console


def show_next_steps(folder: Path, submission: RowSubmission, packed: Packed) -> None:
    """Print how to open the pull request."""
    place = f"board/{submission.track.replace('/', '_')}/{folder.name}"
    images = "" if packed.images is None else f", and {packed.images} with the images"
    for line in (
        f"Written: {folder / SUBMISSION}, and {packed.records} with the records{images}.",
        "To submit it:",
        f"  1. Fork the repository of torch-dent, and unpack {packed.records} into {place}/.",
        f"  2. Copy {folder / SUBMISSION} there.",
        f"  3. {_upload(packed)}",
        f'  4. Open a pull request called "Row: {submission.name} on {submission.track}".',
        "A maintainer then draws the other half of the samples, and runs `dent board check`.",
    ):
        console.say(line)


def _upload(packed: Packed) -> str:
    if packed.images is None:
        return "Upload the archive of images, and add its URL and SHA-256 to submission.json."
    with packed.images.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return (
        "Upload the archive of images, and add its URL and its SHA-256 to submission.json as "
        f'images: {{"url": "https://...", "sha256": "{sha256}"}}.'
    )
