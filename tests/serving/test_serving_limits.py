"""Limits, deadlines, back-pressure and draining, by a clock that tells what it is told."""

import asyncio
import threading
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from servers import (
    ALONE,
    TOGETHER,
    Clock,
    Slow,
    logits_of,
    make_engine,
    make_images,
    make_model,
    npy,
    serving,
)
from torch import Tensor, nn

from dent import Dent
from dent.defenses import make
from dent.serving.cost import StepCost
from dent.serving.engine import Engine, ServedAnswer
from dent.serving.limits import Limits
from dent.serving.metrics import WINDOW, Metrics


class Held(Engine):
    """Waits for permission before each batch."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.running, self.go = threading.Semaphore(0), threading.Semaphore(0)
        self.sizes: list[int] = []

    def run(self, images: Tensor, steps: int | None = None) -> ServedAnswer:
        self.sizes.append(len(images))
        self.running.release()
        assert self.go.acquire(timeout=20)
        return super().run(images, steps)


def held(config: Any = TOGETHER, model: nn.Module | None = None, **settings: Any) -> Held:
    return Held(Dent(model or make_model(), config), make_images(8, seed=99), **settings)


async def started(engine: Held) -> None:
    assert await asyncio.to_thread(engine.running.acquire, True, 20)


def timed(config: Any = TOGETHER) -> tuple[Clock, Engine]:
    """A defense of which every forward of n images takes n seconds of its clock."""
    clock = Clock()
    # A step is a forward that takes twice as long here, for it has a backward.
    model = Slow(clock, make_model(), lambda n: n * (2 if torch.is_grad_enabled() else 1))
    return clock, make_engine(Dent(model, config), clock=clock)


@given(
    st.integers(1, 300), st.integers(0, 40), st.floats(0.001, 100), st.floats(0, 1e4),
    st.integers(1, 300),
)  # fmt: skip
def test_as_many_steps_are_taken_as_fit(
    images: int, most: int, unit: float, budget: float, asked: int
) -> None:
    cost = StepCost()
    cost.observe(images, 3, unit)
    found = cost.steps_within(asked, most, budget)
    fitting = [
        steps for steps in range(min(most, 1), most + 1) if cost.seconds(asked, steps) <= budget
    ]
    assert found == (max(fitting) if fitting else None)


def test_costs_are_learnt_by_size() -> None:
    cost = StepCost()
    assert cost.seconds(5, 3) == 0
    cost.observe(4, 1, 12.0)  # 1 s for each image and forward
    assert cost.seconds(4, 1) == pytest.approx(1.25 * 12)
    assert cost.seconds(64, 0) == pytest.approx(1.25 * 64)  # never seen: as the nearest
    cost.observe(64, 0, 32.0)
    assert cost.seconds(64, 0) == pytest.approx(1.25 * 32)
    assert cost.seconds(4, 0) == pytest.approx(1.25 * 4)
    for _ in range(50):
        cost.observe(4, 0, 8.0)
    assert cost.seconds(4, 0) == pytest.approx(1.25 * 8, rel=1e-3)


def test_a_deadline_takes_fewer_steps_and_says_so() -> None:
    images = make_images(2)

    async def ask() -> None:
        clock, engine = timed()
        async with serving(engine=engine, clock=clock) as client:
            full = await client.ask(images)
            assert (full["steps"], full["degraded"]) == (5, False)
            assert full["seconds"] == 22  # 2 images, 11 forwards
            # 3 steps are 14 s by the measure, 17.5 s with the margin; 4 would be 22.5.
            fewer = await client.ask(images, deadline=20)
            assert (fewer["steps"], fewer["steps_configured"]) == (3, 5)
            assert fewer["degraded"] is True
            assert fewer["late"] is False
            assert fewer["notes"] == ["3 of 5 steps fitted into the deadline."]
            expected = make_engine(Dent(make_model(), TOGETHER).with_steps(3)).run(images)
            assert torch.equal(logits_of(fewer), expected.logits)
            enough = await client.ask(images, deadline=28)
            assert (enough["steps"], enough["degraded"]) == (5, False)
            refused = await client.post(npy(images), deadline=7)  # one step: 7.5
            assert refused.status_code == 504
            assert refused.json()["error"]["code"] == "deadline"
            metrics = await client.metrics()
            assert metrics["dent_degraded_total"] == 1
            assert metrics["dent_refused_total,reason=deadline"] == 1
            assert metrics["dent_steps_total"] == 5 + 3 + 5

    asyncio.run(ask())


def test_the_servers_own_deadline_holds_for_whoever_names_none() -> None:
    async def ask() -> None:
        clock, engine = timed()
        limits = Limits(deadline=20)
        async with serving(engine=engine, clock=clock, limits=limits) as client:
            await client.ask(make_images(2), deadline=1000)
            assert (await client.ask(make_images(2)))["steps"] == 3

    asyncio.run(ask())


def test_an_answer_after_the_deadline_says_so() -> None:
    async def ask() -> None:
        clock, engine = timed()
        async with serving(engine=engine, clock=clock) as client:
            await client.ask(make_images(2))
            engine._defense.model.cost = lambda n: 10 * n  # type: ignore[attr-defined]
            answer = await client.ask(make_images(2), deadline=20)
            assert answer["late"] is True
            assert (await client.metrics())["dent_late_total"] == 1

    asyncio.run(ask())


def test_a_defense_without_steps_is_answered_whole_or_not_at_all() -> None:
    async def ask() -> None:
        clock = Clock()
        model = Slow(clock, make_model(), lambda n: n)
        engine = make_engine(make("static", model), clock=clock)
        async with serving(engine=engine, clock=clock) as client:
            first = await client.ask(make_images(4), deadline=100)
            assert (first["steps"], first["degraded"]) == (0, False)
            assert (await client.post(npy(make_images(4)), deadline=2)).status_code == 504

    asyncio.run(ask())


def test_a_deadline_never_costs_others_their_steps() -> None:
    """A hurried client is answered alone, however batch-independent the defense is."""

    async def ask() -> None:
        clock = Clock()
        model = Slow(clock, make_model(), lambda n: n * (2 if torch.is_grad_enabled() else 1))
        engine = held(ALONE, model, clock=clock)
        async with serving(engine=engine, clock=clock, limits=Limits(max_wait=0)) as client:
            engine.go.release(10)
            await client.ask(make_images(2))
            while engine.go.acquire(blocking=False):
                pass
            await started(engine)
            first = asyncio.create_task(client.ask(make_images(1)))
            await started(engine)
            patient = asyncio.create_task(client.ask(make_images(2)))
            hurried = asyncio.create_task(client.ask(make_images(2), deadline=30))
            other = asyncio.create_task(client.ask(make_images(2)))
            while client.server.batcher.images_waiting < 6:
                await asyncio.sleep(0.001)
            engine.go.release(10)
            await first
            assert (await hurried)["steps"] < ALONE.steps
            assert [(await each)["steps"] for each in (patient, other)] == [ALONE.steps] * 2
            assert engine.sizes == [2, 1, 2, 2, 2]

    asyncio.run(ask())


def test_a_full_queue_refuses_and_what_is_inside_is_answered() -> None:
    async def ask() -> None:
        engine = held()
        async with serving(engine=engine, limits=Limits(max_requests=3)) as client:
            inside = [asyncio.create_task(client.ask(make_images(2))) for _ in range(3)]
            await started(engine)
            while client.server.admission.inside < 3:
                await asyncio.sleep(0.001)
            refused = await client.post(npy(make_images(2)))
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "queue-full"
            assert int(refused.headers["retry-after"]) >= 1
            assert (await client.http.get("/healthz")).status_code == 200
            assert (await client.metrics())["dent_requests_inside"] == 3
            engine.go.release(3)
            assert len(await asyncio.gather(*inside)) == 3
            engine.go.release()
            await client.ask(make_images(2))
            assert (await client.metrics())["dent_refused_total,reason=queue-full"] == 1

    asyncio.run(ask())


def test_who_waits_too_long_is_refused_and_never_computed() -> None:
    async def ask() -> None:
        engine = held()
        async with serving(engine=engine, limits=Limits(timeout=0.2)) as client:
            first = asyncio.create_task(client.ask(make_images(1)))
            await started(engine)
            late = await client.post(npy(make_images(2)))
            assert late.status_code == 504
            gone = asyncio.create_task(client.ask(make_images(3)))
            while not client.server.batcher.images_waiting:
                await asyncio.sleep(0.001)
            gone.cancel()  # as when a client disconnects
            await asyncio.gather(gone, return_exceptions=True)
            engine.go.release(3)
            await first  # it was started in time, and so is answered
            await client.ask(make_images(4))
            assert engine.sizes == [1, 4]
            assert client.server.admission.inside == 0

    asyncio.run(ask())


def test_draining_answers_what_is_inside_and_refuses_what_is_new() -> None:
    async def ask() -> None:
        engine = held()
        async with serving(engine=engine) as client:
            inside = [asyncio.create_task(client.ask(make_images(2))) for _ in range(3)]
            await started(engine)
            while client.server.admission.inside < 3:
                await asyncio.sleep(0.001)
            draining = asyncio.create_task(client.server.drain())
            await asyncio.sleep(0)
            new = await client.post(npy(make_images(2)))
            assert new.status_code == 503
            assert new.json()["error"]["code"] == "draining"
            assert (await client.http.get("/readyz")).status_code == 503
            assert (await client.http.get("/healthz")).status_code == 200
            assert not draining.done()
            engine.go.release(3)
            assert len(await asyncio.gather(*inside)) == 3
            await draining

    asyncio.run(ask())


def test_batches_are_filled_but_never_beyond_their_limit() -> None:
    async def ask() -> None:
        engine = held(ALONE)
        limits = Limits(max_batch_size=5, max_wait=0)
        async with serving(engine=engine, limits=limits) as client:
            first = asyncio.create_task(client.ask(make_images(1)))
            await started(engine)
            rest = []
            for count in (2, 3, 4, 1, 1):
                rest.append(asyncio.create_task(client.ask(make_images(count))))
                waiting = sum(len(each.images) for each in client.server.batcher._waiting)
                while client.server.batcher.images_waiting < waiting + count:
                    await asyncio.sleep(0.001)
            engine.go.release(9)
            await first
            answers = await asyncio.gather(*rest)
            assert [len(answer["predictions"]) for answer in answers] == [2, 3, 4, 1, 1]
            assert engine.sizes == [1, 5, 5, 1]

    asyncio.run(ask())


def test_drift_is_the_change_of_the_inputs_confidence() -> None:
    engine = make_engine(Dent(make_model(), TOGETHER))
    answer = engine.run(make_images(8))
    with torch.no_grad():
        p = make_model()(make_images(8)).softmax(1)
    expected = (1 + (p * p.log()).sum(1) / torch.tensor(4.0).log()).tolist()
    assert answer.confidences() == pytest.approx(expected, abs=1e-5)
    metrics = Metrics(reference=[0.5, 0.7])
    metrics.batch_ends(answer, 1)
    assert metrics.drift() == pytest.approx(sum(expected) / 8 - 0.6, abs=1e-5)


def test_without_a_reference_the_first_images_are_one() -> None:
    engine = make_engine(Dent(make_model(), TOGETHER))
    answer = engine.run(make_images(100))
    metrics = Metrics()
    for _ in range(WINDOW // 100):
        assert metrics.drift() != metrics.drift()
        metrics.batch_ends(answer, 1)
    assert metrics.drift() == pytest.approx(0, abs=1e-9)
