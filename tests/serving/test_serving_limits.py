"""Limits, deadlines, back-pressure and draining, with a fake clock."""

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
    """An engine that waits for permission before each batch."""

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
    """Return a clock, and an engine whose forward of n images takes n seconds of that clock."""
    clock = Clock()
    # With gradients a forward takes twice as long, to include the backward.
    model = Slow(clock, make_model(), lambda n: n * (2 if torch.is_grad_enabled() else 1))
    return clock, make_engine(Dent(model, config), clock=clock)


@given(
    st.integers(1, 300), st.integers(0, 40), st.floats(0.001, 100), st.floats(0, 1e4),
    st.integers(1, 300),
)  # fmt: skip
def test_steps_within_returns_the_most_steps_that_fit_the_budget(
    images: int, most: int, unit: float, budget: float, asked: int
) -> None:
    cost = StepCost()
    cost.observe(images, 3, unit)
    found = cost.steps_within(asked, most, budget)
    fitting = [
        steps for steps in range(min(most, 1), most + 1) if cost.seconds(asked, steps) <= budget
    ]
    assert found == (max(fitting) if fitting else None)


def test_step_costs_are_learned_per_batch_size() -> None:
    cost = StepCost()
    assert cost.seconds(5, 3) == 0
    cost.observe(4, 1, 12.0)  # 1 s for each image and forward
    assert cost.seconds(4, 1) == pytest.approx(1.25 * 12)
    assert cost.seconds(64, 0) == pytest.approx(1.25 * 64)  # no such size yet: uses the nearest
    cost.observe(64, 0, 32.0)
    assert cost.seconds(64, 0) == pytest.approx(1.25 * 32)
    assert cost.seconds(4, 0) == pytest.approx(1.25 * 4)
    for _ in range(50):
        cost.observe(4, 0, 8.0)
    assert cost.seconds(4, 0) == pytest.approx(1.25 * 8, rel=1e-3)


def test_deadline_reduces_the_steps_and_the_answer_reports_it() -> None:
    images = make_images(2)

    async def ask() -> None:
        clock, engine = timed()
        async with serving(engine=engine, clock=clock) as client:
            full = await client.ask(images)
            assert (full["steps"], full["degraded"]) == (5, False)
            assert full["seconds"] == 22  # 2 images, 11 forwards
            # Measured, 3 steps take 14 s, and 17.5 s with the margin; 4 would take 22.5 s.
            fewer = await client.ask(images, deadline=20)
            assert (fewer["steps"], fewer["steps_configured"]) == (3, 5)
            assert fewer["degraded"] is True
            assert fewer["late"] is False
            assert fewer["notes"] == ["3 of 5 steps fitted into the deadline."]
            expected = make_engine(Dent(make_model(), TOGETHER).with_steps(3)).run(images)
            assert torch.equal(logits_of(fewer), expected.logits)
            enough = await client.ask(images, deadline=28)
            assert (enough["steps"], enough["degraded"]) == (5, False)
            refused = await client.post(npy(images), deadline=7)  # one step takes 7.5 s
            assert refused.status_code == 504
            assert refused.json()["error"]["code"] == "deadline"
            metrics = await client.metrics()
            assert metrics["dent_degraded_total"] == 1
            assert metrics["dent_refused_total,reason=deadline"] == 1
            assert metrics["dent_steps_total"] == 5 + 3 + 5

    asyncio.run(ask())


def test_server_deadline_applies_to_requests_without_their_own() -> None:
    async def ask() -> None:
        clock, engine = timed()
        limits = Limits(deadline=20)
        async with serving(engine=engine, clock=clock, limits=limits) as client:
            await client.ask(make_images(2), deadline=1000)
            assert (await client.ask(make_images(2)))["steps"] == 3

    asyncio.run(ask())


def test_answer_after_the_deadline_is_marked_late() -> None:
    async def ask() -> None:
        clock, engine = timed()
        async with serving(engine=engine, clock=clock) as client:
            await client.ask(make_images(2))
            engine._defense.model.cost = lambda n: 10 * n  # type: ignore[attr-defined]
            answer = await client.ask(make_images(2), deadline=20)
            assert answer["late"] is True
            assert (await client.metrics())["dent_late_total"] == 1

    asyncio.run(ask())


def test_defense_without_steps_is_answered_in_full_or_refused() -> None:
    async def ask() -> None:
        clock = Clock()
        model = Slow(clock, make_model(), lambda n: n)
        engine = make_engine(make("static", model), clock=clock)
        async with serving(engine=engine, clock=clock) as client:
            first = await client.ask(make_images(4), deadline=100)
            assert (first["steps"], first["degraded"]) == (0, False)
            assert (await client.post(npy(make_images(4)), deadline=2)).status_code == 504

    asyncio.run(ask())


def test_deadline_of_one_request_does_not_reduce_the_steps_of_others() -> None:
    """A request with a deadline gets its own batch, even for a batch-independent defense."""

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


def test_full_queue_refuses_new_requests_and_answers_accepted_ones() -> None:
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


def test_timed_out_and_disconnected_requests_are_never_computed() -> None:
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
            await first  # it started in time
            await client.ask(make_images(4))
            assert engine.sizes == [1, 4]
            assert client.server.admission.inside == 0

    asyncio.run(ask())


class Departing:
    """A client that sends a whole request, and leaves when it is told to."""

    def __init__(self, images: Tensor) -> None:
        self.left = asyncio.Event()
        self._messages = [{"type": "http.request", "body": npy(images), "more_body": False}]

    async def receive(self) -> dict[str, Any]:
        if self._messages:
            return self._messages.pop()
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def post(self, app: Any) -> None:
        async def send(_: Any) -> None:
            assert self.left.is_set(), "it was answered"

        headers = [(b"content-type", b"application/x-npy")]
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/predict",
            "headers": headers,
            "query_string": b"",
            "http_version": "1.1",
            "scheme": "http",
            "root_path": "",
            "raw_path": b"/v1/predict",
            "server": ("test", 80),
            "client": ("test", 1),
        }
        await app(scope, self.receive, send)


def test_requests_of_departed_clients_are_not_computed_and_free_their_places() -> None:
    async def ask() -> None:
        engine = held()
        async with serving(engine=engine) as client:
            first = asyncio.create_task(client.ask(make_images(1)))
            await started(engine)
            leaving = [Departing(make_images(3)) for _ in range(4)]
            posts = [asyncio.create_task(each.post(client.app)) for each in leaving]
            while client.server.batcher.images_waiting < 12:
                await asyncio.sleep(0.001)
            assert (await client.metrics())["dent_requests_inside"] == 5
            for each in leaving:
                each.left.set()
            await asyncio.wait_for(asyncio.gather(*posts), 10)
            metrics = await client.metrics()
            assert metrics["dent_requests_inside"] == 1
            assert metrics["dent_images_waiting"] == 0
            assert metrics["dent_refused_total,reason=client-left"] == 4
            engine.go.release(2)
            await first
            await client.ask(make_images(2))
            assert engine.sizes == [1, 2]

    asyncio.run(ask())


def test_a_client_that_leaves_during_its_batch_frees_its_place() -> None:
    async def ask() -> None:
        engine = held()
        async with serving(engine=engine) as client:
            leaving = Departing(make_images(3))
            post = asyncio.create_task(leaving.post(client.app))
            await started(engine)
            leaving.left.set()
            await asyncio.wait_for(post, 10)  # not until its batch ends
            assert client.server.admission.inside == 0
            engine.go.release(2)
            await client.ask(make_images(2))
            assert engine.sizes == [3, 2]

    asyncio.run(ask())


def test_draining_answers_accepted_requests_and_refuses_new_ones() -> None:
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


def test_requests_are_batched_up_to_the_maximum_batch_size() -> None:
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


def test_drift_is_the_mean_confidence_minus_that_of_the_reference() -> None:
    engine = make_engine(Dent(make_model(), TOGETHER))
    answer = engine.run(make_images(8))
    with torch.no_grad():
        p = make_model()(make_images(8)).softmax(1)
    expected = (1 + (p * p.log()).sum(1) / torch.tensor(4.0).log()).tolist()
    assert answer.confidences() == pytest.approx(expected, abs=1e-5)
    metrics = Metrics(reference=[0.5, 0.7])
    metrics.batch_ends(answer, 1)
    assert metrics.drift() == pytest.approx(sum(expected) / 8 - 0.6, abs=1e-5)


def test_first_images_become_the_drift_reference_if_none_is_given() -> None:
    engine = make_engine(Dent(make_model(), TOGETHER))
    answer = engine.run(make_images(100))
    metrics = Metrics()
    for _ in range(WINDOW // 100):
        assert metrics.drift() != metrics.drift()
        metrics.batch_ends(answer, 1)
    assert metrics.drift() == pytest.approx(0, abs=1e-9)
