"""Print how to go on with a row of the board that was submitted."""

from collections.abc import Iterator

from dent.board.row_folder import take_over
from dent.board.submission import SUBMISSION
from dent.board.tracks import NOT_OF_THE_BOARD
from dent.board.trust import TRUST
from dent.board.verification import Submitted
from dent.cli import console
from dent.storage.disk import sha256_of


def show_next_steps(done: Submitted) -> None:
    """Print how to open the pull request, or what a maintainer does next."""
    row, packed = done.row, done.packed
    images = "" if packed.images is None else f", and {packed.images} with the images"
    console.say(
        f"Written: {row.folder / SUBMISSION}, and {packed.records} with the records{images}."
    )
    if row.track.practice:
        steps = _practice(done)
    else:
        steps = _claim(done) if row.nonce is None else _row(done)
    for line in steps:
        console.say(line)


def _practice(done: Submitted) -> Iterator[str]:
    row = done.row
    yield f"{row.track.name} is {NOT_OF_THE_BOARD}, so open no pull request."
    if row.nonce is not None:
        yield "To check it as a maintainer does:"
        yield (
            f"  dent board check {row.folder} --reattack 5 --reattack-nonce ANOTHER-TEXT "
            "--allow-code"
        )
        return
    factory, both = done.submission.factory, f"{row.folder}-row"
    yield "To go on as a maintainer does, draw the other half by any text:"
    yield f"  dent board run {row.track.name} --defense {factory} --nonce TEXT --out {both}"
    yield f"  {take_over(str(row.folder), both).strip('`')}"


def _claim(done: Submitted) -> Iterator[str]:
    submission, packed = done.submission, done.packed
    yield "To submit it:"
    yield (
        f"  1. Fork the repository of torch-dent, and unpack {packed.records} into {_place(done)}/."
    )
    yield f"  2. Copy {done.row.folder / SUBMISSION} there."
    yield f"  3. Upload the archive of images, and add its URL and SHA-256{_sha256(done)} to it."
    yield f'  4. Open a pull request called "Row: {submission.name} on {submission.track}".'
    yield "A maintainer then draws the other half of the samples, and runs `dent board check`."


def _row(done: Submitted) -> Iterator[str]:
    folder, packed = done.row.folder, done.packed
    yield "A row is void if its submitter chose its nonce. A maintainer who drew it goes on:"
    yield (
        f"  1. dent board check {folder} --reattack 20 --reattack-nonce ANOTHER --allow-code "
        "--record NAME --nonce-source TEXT"
    )
    yield (
        "  2. Upload the archive of images, and add its URL and SHA-256"
        f"{_sha256(done)} to {folder / SUBMISSION}."
    )
    yield (
        f"  3. Delete the claim in {_place(done)}/, unpack {packed.records} there, and copy "
        f"{SUBMISSION} and {TRUST} there."
    )


def _place(done: Submitted) -> str:
    return f"board/{done.submission.track.replace('/', '_')}/{done.row.folder.name}"


def _sha256(done: Submitted) -> str:
    images = done.packed.images
    return "" if images is None else f" ({sha256_of(images)})"
