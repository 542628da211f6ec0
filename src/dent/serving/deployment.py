"""The server as an application of Ray Serve. Importing this module needs the extra `ray`."""

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any, Final

from fastapi import FastAPI
from prometheus_client import Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from ray import serve
from ray.serve.schema import LoggingConfig

from dent.serving.app import create_app
from dent.serving.loading import load_server
from dent.serving.options import ServerOptions

APPLICATION: Final = "dent"
DEPLOYMENT: Final = "DentServer"
_SPARE = 64
"""Requests beyond its queue that a replica takes from Ray: probes, and requests that it refuses."""

_HEALTH = 1.0
"""Seconds between two health checks of a replica; Ray's default is 10."""


class _Replica:
    """One copy of the model behind the API."""

    def __init__(self, options: dict[str, Any]) -> None:
        chosen = ServerOptions.model_validate(options)
        self._server = load_server(chosen)
        self._single = chosen.replicas == 1
        self._context = serve.get_replica_context()

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_app(self._server, self._scrape_all)

    async def drain(self) -> None:
        """Refuse new requests, and return when all admitted ones are answered."""
        await self._server.drain()

    async def scrape(self) -> tuple[str, str]:
        """Return the name and the metrics of this replica."""
        return self._context.replica_id.unique_id, generate_latest(
            self._server.metrics.registry
        ).decode()

    async def _scrape_all(self) -> bytes:
        if self._single:
            return generate_latest(self._server.metrics.registry)
        handle = serve.get_deployment_handle(DEPLOYMENT, self._context.app_name)
        scraped = await asyncio.to_thread(lambda: handle.broadcast("scrape").results())
        return merge(scraped)


def application(args: ServerOptions) -> serve.Application:
    """Return the application for `serve run dent.serving.deployment:application model=...`."""
    limits = args.limits
    deployment = serve.deployment(
        name=DEPLOYMENT,
        num_replicas=args.replicas,
        max_ongoing_requests=limits.max_requests + _SPARE,
        max_queued_requests=limits.max_requests + _SPARE,
        graceful_shutdown_timeout_s=2 * limits.timeout,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=_HEALTH,
        logging_config=LoggingConfig(log_level="WARNING", enable_access_log=False),
        ray_actor_options={"num_cpus": args.num_cpus, "num_gpus": args.num_gpus},
    )(serve.ingress()(_Replica))
    return deployment.bind(args.model_dump(mode="json"))


def merge(scraped: Sequence[tuple[str, str]]) -> bytes:
    """Merge the metrics of several replicas; each sample gets its replica as a label."""
    families: dict[str, Metric] = {}
    for replica, text in scraped:
        for family in text_string_to_metric_families(text):
            merged = families.setdefault(
                family.name, Metric(family.name, family.documentation, family.type)
            )
            merged.samples += [
                Sample(sample.name, {**sample.labels, "replica": replica}, sample.value)
                for sample in family.samples
            ]
    return generate_latest(_Merged(families))


class _Merged:
    """Metric families in the form of a registry, as `generate_latest` takes them."""

    def __init__(self, families: dict[str, Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        """Yield every family once."""
        yield from self._families.values()
