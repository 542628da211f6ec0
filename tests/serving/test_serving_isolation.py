"""No client can change the answer of another client, not even by an attack."""

import asyncio
from typing import Any

import pytest
import torch
from servers import (
    ALONE,
    TOGETHER,
    Client,
    logits_of,
    make_engine,
    make_images,
    make_model,
    npy,
    serving,
)
from torch import Tensor

from dent import DENT_NOMINAL, DENT_PLUS, Dent
from dent.defenses import make
from dent.serving.engine import Engine, ServedAnswer
from dent.serving.limits import Limits


def hostile(count: int) -> Tensor:
    """Return black and white images, which strongly shift the statistics of a shared batch."""
    return torch.stack([torch.full((3, 8, 8), float(index % 2)) for index in range(count)])


async def under_flood(client: Client, victim: Tensor) -> tuple[dict[str, Any], list[int]]:
    """Return a victim's answer during a flood of requests, and the statuses of the flood."""
    flood = [asyncio.create_task(client.post(npy(hostile(5)))) for _ in range(7)]
    await asyncio.sleep(0)
    asked = asyncio.create_task(client.ask(victim))
    flood += [asyncio.create_task(client.post(npy(hostile(3)))) for _ in range(7)]
    answer = await asked
    return answer, [response.status_code for response in await asyncio.gather(*flood)]


@pytest.mark.parametrize(
    "config", [TOGETHER, DENT_PLUS, DENT_NOMINAL], ids=["dent", "dent+", "nominal"]
)
def test_flood_does_not_change_the_logits_of_batch_dependent_defenses(config: Any) -> None:
    victim = make_images(4, seed=5)

    async def attack() -> None:
        async with serving(Dent(make_model(), config), Limits(max_wait=0.05)) as client:
            alone = await client.ask(victim)
            flooded, statuses = await under_flood(client, victim)
            metrics = await client.metrics()
        assert set(statuses) == {200}
        assert torch.equal(logits_of(flooded), logits_of(alone))
        assert [p["status"] for p in flooded["predictions"]] == ["adapted"] * 4
        assert metrics["dent_batch_requests_sum"] == metrics["dent_batch_requests_count"]
        # In a shared batch, the attack would have changed the logits.
        mixed = Dent(make_model(), config)(torch.cat([victim, hostile(5)]))[:4]
        assert not torch.allclose(mixed, logits_of(alone), atol=1e-4)

    asyncio.run(attack())


def test_flood_in_shared_batches_does_not_change_batch_independent_answers() -> None:
    victim = make_images(4, seed=5)

    async def attack() -> None:
        async with serving(Dent(make_model(), ALONE), Limits(max_wait=0.05)) as client:
            alone = await client.ask(victim)
            flooded, statuses = await under_flood(client, victim)
            metrics = await client.metrics()
        assert set(statuses) == {200}
        torch.testing.assert_close(logits_of(flooded), logits_of(alone), rtol=1e-4, atol=1e-5)
        assert [p["label"] for p in flooded["predictions"]] == [
            p["label"] for p in alone["predictions"]
        ]
        # Requests did share batches; otherwise this test would prove little.
        assert metrics["dent_batch_requests_sum"] > metrics["dent_batch_requests_count"] + 5

    asyncio.run(attack())


@pytest.mark.parametrize("error", [RuntimeError, SystemExit])
def test_request_that_crashes_its_batch_does_not_fail_other_requests(
    error: type[BaseException],
) -> None:
    class Fragile(Engine):
        def run(self, images: Tensor, steps: int | None = None) -> ServedAnswer:
            if bool((images[:, 0, 0, 0] == 0).any()):
                raise error("a crafted image hit a bug")
            return super().run(images, steps)

    victim = make_images(4, seed=5)
    engine = Fragile(Dent(make_model(), ALONE), make_images(8, seed=99))

    async def attack() -> None:
        async with serving(engine=engine, limits=Limits(max_wait=0.2)) as client:
            bad = asyncio.create_task(client.post(npy(hostile(2))))
            answer = await client.ask(victim)
            assert (await bad).status_code == 500
        assert len(answer["predictions"]) == 4

    asyncio.run(attack())


def test_engine_measures_whether_requests_may_share_a_batch() -> None:
    class Liar(Dent):
        @property
        def batch_dependent(self) -> bool:
            return False

    assert make_engine(Dent(make_model(), ALONE)).shares
    for name in ("static", "tte", "anti-adversary", "et3", "mean-sparse"):
        assert make_engine(make(name, make_model())).shares
    for config in (TOGETHER, DENT_PLUS, DENT_NOMINAL):
        assert not make_engine(Dent(make_model(), config)).shares
        assert not make_engine(Liar(make_model(), config)).shares
    assert not make_engine(make("hedge", make_model())).shares  # randomized
    assert not make_engine(make("tent-online", make_model())).shares  # stateful


def test_stateful_defense_is_not_affected_by_earlier_requests() -> None:
    victim = make_images(4, seed=5)

    async def attack() -> None:
        engine = make_engine(make("tent-online", make_model()))
        async with serving(engine=engine) as client:
            alone = await client.ask(victim)
            for _ in range(3):
                await client.ask(hostile(5))
            assert torch.equal(logits_of(await client.ask(victim)), logits_of(alone))

    asyncio.run(attack())


def test_randomized_defense_uses_a_new_seed_for_every_batch() -> None:
    images = make_images(2)

    async def ask() -> None:
        seeds = iter(range(100))
        engine = make_engine(make("hedge", make_model()), seeds=lambda: next(seeds))
        async with serving(engine=engine) as client:
            first, second = await client.ask(images), await client.ask(images)
        starts = [
            [each["entropy_before"] for each in answer["predictions"]] for answer in (first, second)
        ]
        assert starts[0] != starts[1]

    asyncio.run(ask())
    drawn = make_engine(make("hedge", make_model()), seeds=Engine.__init__.__kwdefaults__["seeds"])
    assert drawn.run(images).entropy_before != drawn.run(images).entropy_before
