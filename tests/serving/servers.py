"""Servers of small models, and clients that call them in process."""

import io
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
import numpy as np
import torch
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families
from torch import Tensor, nn

from dent import Dent, DentConfig
from dent.serving.app import Server, create_app
from dent.serving.engine import Engine
from dent.serving.limits import Limits

SHAPE = (3, 8, 8)
ALONE = DentConfig(steps=3, lr=0.05, granularity="sample", objective="entropy", reduction="sum")
"""Configuration of a batch-independent defense: requests may share a batch."""
TOGETHER = DentConfig(steps=5, lr=0.05)
"""Configuration of a batch-dependent defense."""


def make_model() -> nn.Sequential:
    """Return a small model with the same weights on every call."""
    generator = torch.Generator().manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 4)
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


def make_images(count: int, seed: int = 0) -> Tensor:
    """Return images (count, *SHAPE) whose pixels are multiples of 1/255."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, *SHAPE), generator=generator).float() / 255


def make_engine(defense: Any, **settings: Any) -> Engine:
    return Engine(defense, make_images(8, seed=99), **({"seeds": lambda: 0} | settings))


def npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.asarray(array), allow_pickle=True)
    return stream.getvalue()


class Client:
    """A client that calls an application without a network."""

    def __init__(self, http: httpx.AsyncClient, server: Server, app: FastAPI) -> None:
        self.http, self.server, self.app = http, server, app

    async def post(
        self, body: bytes, kind: str = "application/x-npy", **query: Any
    ) -> httpx.Response:
        return await self.http.post(
            "/v1/predict", content=body, headers={"content-type": kind}, params=query
        )

    async def ask(self, images: Tensor, **query: Any) -> dict[str, Any]:
        """Post images and return the answer with logits; the status must be 200."""
        response = await self.post(npy(images), **({"logits": True} | query))
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    async def ask_json(self, content: Any, **query: Any) -> httpx.Response:
        return await self.post(json.dumps(content).encode(), "application/json", **query)

    async def metrics(self) -> dict[str, float]:
        """Return the value of every metric by name and labels."""
        text = (await self.http.get("/metrics")).text
        return {
            sample.name
            + "".join(
                f",{key}={value}" for key, value in sorted(sample.labels.items())
            ): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }


@asynccontextmanager
async def serving(
    defense: Any | None = None,
    limits: Limits | None = None,
    *,
    classes: Sequence[str] = ("a", "b", "c", "d"),
    engine: Engine | None = None,
    **settings: Any,
) -> AsyncIterator[Client]:
    """Run a server and yield a client of it."""
    engine = engine or make_engine(defense or Dent(make_model(), TOGETHER))
    server = Server(engine, limits or Limits(), classes=classes, model="toy", **settings)
    app = create_app(server)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as http,
    ):
        yield Client(http, server, app)


def logits_of(answer: dict[str, Any]) -> Tensor:
    return torch.tensor([each["logits"] for each in answer["predictions"]])


class Clock:
    """A fake clock that tests set by hand, in seconds."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def __deepcopy__(self, memo: object) -> "Clock":
        return self  # a defense copies its model, and the copy must use the same clock


class Slow(nn.Module):
    """Wraps a model so that every forward of n images moves a clock by `cost(n)` seconds."""

    def __init__(self, clock: Clock, model: nn.Module, cost: Callable[[int], float]) -> None:
        super().__init__()
        self.clock, self.model, self.cost = clock, model, cost

    def forward(self, x: Tensor) -> Tensor:
        self.clock.now += self.cost(len(x))
        found: Tensor = self.model(x)
        return found
