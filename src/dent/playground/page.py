"""The page: its components, and the handlers of its events."""

from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Final

import gradio as gr
from PIL import Image

from dent.data import ImageDataset
from dent.errors import DentError, InputError
from dent.playground import compute, ledger, render
from dent.playground.compute import Sight, play
from dent.playground.controls import Controls, controls, for_defense, for_model, for_norm, read
from dent.playground.images import FIRST, SIDE, Picked, bundled, dropped, gallery
from dent.playground.ledger import Entry
from dent.playground.outcome import CourseName, PlaygroundOutcome
from dent.playground.setup import Setup
from dent.playground.streaming import ReportStream, Stopped
from dent.playground.turns import MOST_WAITING, Asker, Turn, Turns
from dent.playground.visitors import Visitors
from dent.playground.watch import Look

TITLE: Final = "torch-dent playground"
_PER_CLASS: Final = 4
_ENLARGED: Final = 2 * SIDE
_FORGET: Final = 3600  # seconds for which the state of a visitor's session is kept
_LOOK_EVERY: Final = 0.5  # seconds between updates of a visitor who waits for a turn

_HEAD: Final = """<div class="play"><h1>Attack an image, with and without dent</h1>
<p>dent adapts to a batch, so the page adds bundled images to yours, drawn by the seed. The result
is an upper bound after a few attacks: an adaptive attack may break more, and one image is no
benchmark.</p>
</div>"""

_QUIET: Final[dict[str, Any]] = {"show_progress": "hidden", "api_visibility": "private"}

Updates = dict[Any, Any]


@dataclass(frozen=True)
class Shown:
    """The components of the page that change, and its state for a visitor."""

    picked: gr.State
    chosen: gr.HTML
    run: gr.Button
    stop: gr.Button
    status: gr.HTML
    verdict: gr.HTML
    query: gr.Slider
    watched: gr.HTML
    results: gr.HTML
    seen: gr.State
    entries: gr.State


def build(turns: Turns, visitors: Visitors) -> gr.Blocks:
    """Return the page.

    Args:
        turns: The queue of the runs.
        visitors: The visitors who may ask for runs; the page opens only their uploads.
    """
    dataset = compute.images()
    places = gallery(dataset, _PER_CLASS)
    first = bundled(dataset, FIRST)
    page = gr.Blocks(title=TITLE, analytics_enabled=False)
    with page:
        gr.HTML(_HEAD, apply_default_css=False)
        with gr.Row(equal_height=False):
            with gr.Column(scale=4, min_width=300):
                offered = gr.Gallery(
                    [_thumbnail(dataset, place) for place in places],
                    label="Pick an image",
                    columns=8,
                    object_fit="contain",
                    allow_preview=False,
                    selected_index=places.index(FIRST),
                    format="png",
                    buttons=[],
                    height="auto",
                    interactive=False,
                    elem_id="gallery",
                )
                upload = gr.File(
                    label="or drop one in",
                    file_types=[".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif"],
                    height=120,
                    elem_id="upload",
                )
                chosen = _html("chosen")
                chosen_controls = controls()
            with gr.Column(scale=9, min_width=300):
                shown = _shown(first, chosen)
        _wire_choices(page, shown, chosen_controls)
        _wire_images(shown, visitors, offered, upload, places)
        _wire_runs(page, shown, chosen_controls, turns, visitors)
    return page


def _shown(first: Picked, chosen: gr.HTML) -> Shown:
    with gr.Row():
        run = gr.Button("Attack", variant="primary", scale=3, elem_id="run")
        stop = gr.Button("Stop", variant="stop", min_width=80, interactive=False, elem_id="stop")
    return Shown(
        picked=gr.State(first),
        chosen=chosen,
        run=run,
        stop=stop,
        status=_html("status"),
        verdict=_html("verdict"),
        query=gr.Slider(
            0,
            1,
            0,
            step=1,
            label="Query",
            info="Go through the queries of the attacks and their answers.",
            visible=False,
            elem_id="query",
        ),
        watched=_html("watched", render.empty()),
        results=_html("results"),
        seen=gr.State(None, time_to_live=_FORGET),
        entries=gr.State((), time_to_live=_FORGET),
    )


def _html(name: str, value: str = "") -> gr.HTML:
    return gr.HTML(value, elem_id=name, apply_default_css=False)


def _wire_choices(page: gr.Blocks, shown: Shown, chosen: Controls) -> None:
    chosen.model.input(for_model, chosen.model, [chosen.norm, chosen.eps], **_QUIET)
    chosen.norm.input(for_norm, chosen.norm, chosen.eps, **_QUIET)
    chosen.defense.input(for_defense, chosen.defense, chosen.steps, **_QUIET)
    gr.on(
        [page.load, shown.picked.change, *(component.change for component in chosen.components)],
        _describe,
        [shown.picked, *chosen.components],
        shown.chosen,
        trigger_mode="always_last",
        **_QUIET,
    )


def _wire_images(
    shown: Shown, visitors: Visitors, offered: gr.Gallery, upload: gr.File, places: list[int]
) -> None:
    def pick(event: gr.SelectData) -> tuple[Picked, None]:
        with _one_sentence():
            if event.index not in range(len(places)):
                raise InputError(f"there is no image {event.index} in the gallery")
            return bundled(compute.images(), places[event.index]), None

    def drop(request: gr.Request, path: str) -> tuple[Picked, Any]:
        with _one_sentence():
            visitor = visitors.of(request.session_hash)
            if visitor is None or not visitors.may_read(visitor, Path(path)):
                raise InputError("only a file that you have just uploaded is opened: drop it again")
            return dropped(Path(path)), gr.Gallery(selected_index=None)

    def clear() -> tuple[Picked, Any]:
        return bundled(compute.images(), FIRST), gr.Gallery(selected_index=places.index(FIRST))

    offered.select(pick, None, [shown.picked, upload], **_QUIET)
    upload.upload(drop, upload, [shown.picked, offered], **_QUIET)
    upload.clear(clear, None, [shown.picked, offered], **_QUIET)


def _wire_runs(
    page: gr.Blocks, shown: Shown, chosen: Controls, turns: Turns, visitors: Visitors
) -> None:
    def start(request: gr.Request, picked: Picked, entries: tuple[Entry, ...], *values: Any) -> Any:
        with _one_sentence():
            setup = read(*values)
            turn = turns.ask(_asker(visitors, request))
        try:
            while ahead := turns.wait(turn, _LOOK_EVERY):
                if turn.is_set():
                    break
                yield _busy(shown) | {shown.status: render.waiting(ahead)}
            yield from _run(shown, _RequestedRun(setup, picked, turns, turn), entries)
        finally:
            turns.end(turn)

    def stop(request: gr.Request) -> None:
        if request.session_hash is not None:
            turns.stop(request.session_hash)

    shown.run.click(
        start,
        [shown.picked, shown.entries, *chosen.components],
        [output for output in vars(shown).values() if output not in (shown.picked, shown.chosen)],
        concurrency_id="machine",
        concurrency_limit=MOST_WAITING,  # not 1: `turns` keeps the order
        **_QUIET,
    )
    shown.stop.click(stop, None, None, **_QUIET)
    shown.query.input(_watched_at, [shown.seen, shown.query], shown.watched, **_QUIET)
    page.unload(stop)


def _asker(visitors: Visitors, request: gr.Request) -> Asker:
    visitor = visitors.of(request.session_hash)
    if visitor is None or request.session_hash is None:
        raise InputError("open the page first")
    return Asker(request.session_hash, visitor.token, visitor.address)


@dataclass(frozen=True, eq=False)
class WatchedRun:
    """The queries of a run that the page has shown, for the slider to show again."""

    setup: Setup
    looks: dict[CourseName, list[Look]]


@dataclass(frozen=True)
class _RequestedRun:
    """A run that a visitor has asked for."""

    setup: Setup
    picked: Picked
    turns: Turns
    turn: Turn

    def play(self, see: Callable[[Sight], None]) -> PlaygroundOutcome:
        """Compute the run, then let the next one begin, even if the visitor has left."""
        try:
            self._check()
            self.turn.begin()
            return play(self.setup, self.picked, see, self._check)
        finally:
            self.turns.end(self.turn)

    def _check(self) -> None:
        if self.turn.is_set():
            raise Stopped

    @property
    def stopped(self) -> str:
        """The message that the run was stopped, and why."""
        seconds = self.turns.seconds if self.turn.overdue else None
        return render.stopped(self.setup, seconds)


def _run(shown: Shown, requested: _RequestedRun, entries: tuple[Entry, ...]) -> Generator[Updates]:
    """Run the chosen setup and yield its progress. The last update is the outcome."""
    setup, picked = requested.setup, requested.picked
    record = WatchedRun(setup, {})
    yield _busy(shown) | {shown.status: render.progress(None, setup)}
    stream: ReportStream[Sight, PlaygroundOutcome] = ReportStream(requested.play, requested.turn)
    try:
        with closing(iter(stream)) as batches:
            for sights in batches:
                for sight in sights:
                    record.looks.setdefault(sight.course, []).append(sight.look)
                yield {
                    shown.status: render.progress(sights[-1], setup),
                    shown.watched: _watched(record),
                }
        outcome = stream.result()
    except Stopped:
        remembered = ledger.remember(entries, ledger.of_stopped(setup, picked, record.looks))
        yield _idle(shown, record) | {shown.status: requested.stopped, shown.entries: remembered}
    except Exception as error:
        yield _idle(shown, record) | {shown.status: ""}
        with _one_sentence():
            raise error
    else:
        yield _idle(shown, record) | {
            shown.status: "",
            shown.verdict: render.ruling(outcome, entries),
            shown.results: render.results(outcome),
            shown.entries: ledger.remember(entries, ledger.of_outcome(outcome)),
        }


def _busy(shown: Shown) -> Updates:
    return {
        shown.run: gr.Button(interactive=False),
        shown.stop: gr.Button(interactive=True),
        shown.verdict: "",
        shown.results: "",
        shown.query: gr.Slider(visible=False),
        shown.watched: "",
        shown.seen: None,
    }


def _idle(shown: Shown, record: WatchedRun) -> Updates:
    last = max((len(looks) for looks in record.looks.values()), default=0) - 1
    return {
        shown.run: gr.Button(interactive=True),
        shown.stop: gr.Button(interactive=False),
        shown.query: gr.Slider(maximum=max(last, 1), value=max(last, 1), visible=last > 0),
        shown.seen: record,
    }


def _watched_at(record: WatchedRun | None, query: float) -> str:
    return "" if record is None else _watched(record, int(query))


def _watched(record: WatchedRun, query: int | None = None) -> str:
    return render.watched(record.looks, record.setup, compute.images().classes, query)


def _describe(picked: Picked, *values: Any) -> str:
    try:
        setup = read(*values)
    except DentError:  # the run itself shows the error
        setup = None
    return render.chosen(picked, compute.images().classes, setup)


@contextmanager
def _one_sentence() -> Iterator[None]:
    """Show an error of this package on the page, as its message only."""
    try:
        yield
    except DentError as error:
        raise gr.Error(escape(str(error)), print_exception=False) from error


def _thumbnail(dataset: ImageDataset, position: int) -> Image.Image:
    pixels = bundled(dataset, position).pixels.mul(255).round().byte().permute(1, 2, 0)
    return Image.fromarray(pixels.numpy()).resize((_ENLARGED, _ENLARGED), Image.Resampling.NEAREST)
