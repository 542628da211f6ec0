"""A web page to try dent: attack an image, with and without the defense, and watch.

    dent playground

`play` computes everything that the page shows, and needs no browser. The page itself needs the
extra `playground`.
"""

from dent.playground.compute import Sight, images, play
from dent.playground.images import Picked, bundled, dropped
from dent.playground.outcome import PlaygroundOutcome
from dent.playground.server import serve
from dent.playground.setup import Setup

__all__ = [
    "Picked",
    "PlaygroundOutcome",
    "Setup",
    "Sight",
    "bundled",
    "dropped",
    "images",
    "play",
    "serve",
]
