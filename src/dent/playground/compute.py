"""Attack an image in its batch, with and without the defense, and submit what the attacks find.

    outcome = play(Setup(ThreatModel("linf", "8/255")), bundled(dataset, 0))

This needs no browser. The attacks are those of `dent.attacks`, unchanged; the page only records
their queries.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from dent import data, models
from dent.attacks import Defense, DynamicDefense
from dent.attacks.adaptive import Among
from dent.data import ImageDataset
from dent.defenses.dent import Dent
from dent.errors import InputError
from dent.evaluation.submission.submission import Submission, submit
from dent.playground.images import Picked, company
from dent.playground.outcome import (
    WHO,
    Cost,
    Course,
    CourseName,
    PlaygroundAnswer,
    PlaygroundOutcome,
    PlaygroundSubmission,
    Who,
    asked_by,
)
from dent.playground.setup import DATASET, Setup
from dent.playground.watch import AttackWatch, Look, WatchedDefense, WatchedModel

_TIMED = 3


@dataclass(frozen=True, eq=False)
class Sight:
    """A look, reported while the attack runs.

    Attributes:
        course: Name of the attack.
        look: The query.
        planned: Largest number of queries of this attack.
        share: Share of all attacks that is done, in [0, 1].
    """

    course: CourseName
    look: Look
    planned: int
    share: float


See = Callable[[Sight], None]


@lru_cache(maxsize=1)
def images() -> ImageDataset:
    """Return the bundled images."""
    return data.load(DATASET)


@lru_cache(maxsize=2)
def model(name: str) -> nn.Module:
    """Return a model that the page offers. It is cached, and nothing here writes to it.

    Raises:
        WeightsError: Its weights are damaged.
        MissingExtraError: It needs a package that is not installed.
    """
    return models.load(name, num_classes=len(images().classes))


def play(
    setup: Setup,
    picked: Picked,
    see: See = lambda sight: None,
    check: Callable[[], None] = lambda: None,
) -> PlaygroundOutcome:
    """Run the attacks of a setup on an image, and submit what they find.

    On one machine, the same arguments give the same outcome, except for the times.

    Args:
        setup: What to run.
        picked: The image.
        see: Called with every query while the attacks run. An exception that it raises ends the
            run.
        check: Called before every layer of a model. An exception that it raises ends the run
            within a step.

    Raises:
        InputError: The image has no label, and the static model has no prediction for it.
    """
    with _checked(check):
        return _Play(setup, picked, see).run()


@contextmanager
def _checked(check: Callable[[], None]) -> Iterator[None]:
    thread = threading.get_ident()

    def before_layer(module: nn.Module, inputs: object) -> None:
        if threading.get_ident() == thread:
            check()

    handle = register_module_forward_pre_hook(before_layer)
    try:
        yield
    finally:
        handle.remove()


class _Play:
    def __init__(self, setup: Setup, picked: Picked, see: See) -> None:
        self.setup = setup
        self.picked = picked
        self.see = see
        self.static = model(setup.model)
        self.defense = Dent(self.static, setup.config)
        self.company = tuple(company(images(), picked, setup.batch_size, setup.seed))
        company_images, labels = images().batch(self.company)
        self.natural = torch.cat([picked.pixels.unsqueeze(0), company_images])
        self.label = self._label()
        self.labels = torch.cat([torch.tensor([self.label]), labels])
        self.courses: list[Course] = []
        self.submissions: list[PlaygroundSubmission] = []

    def run(self) -> PlaygroundOutcome:
        self._submit(None, self.natural)
        batches = self._attack("static")
        for rung in self.setup.rungs:
            if rung == "transfer":
                self._transfer(batches)
            else:
                self._attack(rung)
        return PlaygroundOutcome(
            setup=self.setup,
            picked=self.picked,
            label=self.label,
            classes=images().classes,
            company=self.company,
            courses=tuple(self.courses),
            submissions=tuple(self.submissions),
            cost=self._cost(),
        )

    def _label(self) -> int:
        if self.picked.label is not None:
            return self.picked.label
        answer = self._serve("static", self.natural[:1]).predictions[0]
        if answer is None:
            raise InputError(
                f"{self.setup.model} has no answer to {self.picked.name}: take another"
            )
        return answer

    def _attack(self, name: CourseName) -> list[Tensor]:
        """Run an attack and submit what it found; return the batches of its queries."""
        setup, size = self.setup, self._attacked
        attack = setup.of_static() if name == "static" else setup.of_defense(name)
        planned = attack.queries(len(images().classes), setup.threat.norm).forwards
        watch = self._watch(name, planned)
        target: Defense = WatchedModel(self.static, watch)
        if name != "static":
            target = WatchedDefense(self._as_attacked(), watch)
        x, y = self.natural[:size], self.labels[:size]
        start = time.perf_counter()
        result = attack(target, x, y, setup.threat, seed=setup.seed)
        self._close(name, watch, time.perf_counter() - start)
        self._submit(name, torch.cat([result.adversarial, self.natural[size:]]))
        self._submit_find(name, watch)
        return watch.batches

    def _transfer(self, batches: list[Tensor]) -> None:
        """Submit to the defense every batch that the attack on the static model tried."""
        watch = self._watch("transfer", len(batches))
        start = time.perf_counter()
        for batch in batches:
            watch.saw(batch, self._serve("defense", batch).logits)
        self._close("transfer", watch, time.perf_counter() - start)
        self._submit_find("transfer", watch)

    @property
    def _attacked(self) -> int:
        return len(self.natural) if self.setup.target == "batch" else 1

    def _as_attacked(self) -> DynamicDefense:
        if self.setup.target == "batch":
            return self.defense
        controlled = torch.arange(len(self.natural)) < self._attacked
        return Among(self.defense, self.natural, self.labels, controlled)

    def _watch(self, name: CourseName, planned: int) -> AttackWatch:
        courses = 1 + len(self.setup.rungs)

        def notice(look: Look) -> None:
            share = (len(self.courses) + min((look.query + 1) / planned, 1.0)) / courses
            self.see(Sight(name, look, planned, share))

        return AttackWatch(self.label, self.natural, self.setup.threat, notice)

    def _close(self, name: CourseName, watch: AttackWatch, seconds: float) -> None:
        self.courses.append(Course(name, tuple(watch.looks), seconds))

    def _submit(self, found_by: CourseName | None, batch: Tensor, query: int | None = None) -> None:
        static, defense = (PlaygroundAnswer(self._serve(who, batch), self.labels) for who in WHO)
        self.submissions.append(PlaygroundSubmission(found_by, query, batch, static, defense))

    def _submit_find(self, name: CourseName, watch: AttackWatch) -> None:
        """Submit the find of an attack, unless a submission already fools the target.

        The natural batch and the submissions of the attack count; for `transfer`, those of the
        attack on the static model.
        """
        who = asked_by(name)
        ends = (None, "static" if name == "transfer" else name)
        fooled = any(not s.answer(who).right for s in self.submissions if s.found_by in ends)
        if watch.find is not None and not fooled:
            look, batch = watch.find
            self._submit(name, batch, look.query)

    def _serve(self, who: Who, batch: Tensor) -> Submission:
        target: Defense = self.static if who == "static" else self.defense
        return submit(target, batch, seed=self.setup.seed, attacked=1)

    def _cost(self) -> Cost:
        static = median(self._serve("static", self.natural).seconds for _ in range(_TIMED))
        answer = self._serve("defense", self.natural).seconds
        return Cost(answer, static, self.setup.config.steps)
