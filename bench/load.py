"""Load on a server that streams as OpenAI's do: arrivals that wait for nobody, or so many clients that ask in turn."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np

PATIENCE = 120.0
"""Seconds for one answer."""
BROKEN_OFF = 599
"""Status of an answer that is not whole."""


@dataclass(frozen=True)
class Ask:
    """A request that streams: its path, and its body."""

    path: str
    body: bytes


@dataclass
class Sample:
    """What became of a request; seconds of one clock.

    Attributes:
        due: when it was to be sent.
        status: of the answer; 0 where the bound of requests in flight kept it from being sent.
        texts: when each piece of text came; a piece is a token in these benchmarks.
    """

    due: float
    status: int = 0
    texts: list[float] = field(default_factory=list)

    @property
    def first(self) -> float:
        """Seconds to the first token, from when the request was due."""
        return self.texts[0] - self.due

    @property
    def answered(self) -> bool:
        """Whether there was an answer."""
        return self.status == 200 and bool(self.texts)


def poisson(rate: float, count: int, seed: int = 0) -> list[float]:
    """Return the times of ``count`` arrivals, ``rate`` a second; for every rate the same ones, stretched."""
    gaps = np.random.default_rng(seed).exponential(1.0, count)
    return (np.cumsum(gaps / gaps.mean()) / rate).tolist()


def open_loop(url: str, asks: Sequence[Ask], times: Sequence[float], in_flight: int) -> list[Sample]:
    """Send each request at its time, however many are not answered yet, up to ``in_flight``."""
    return asyncio.run(_open_loop(url, asks, times, in_flight))


def closed_loop(url: str, asks: Sequence[Ask], clients: int) -> list[Sample]:
    """Let so many clients send the requests, each its next one once it has its answer."""
    return asyncio.run(_closed_loop(url, asks, clients))


async def _open_loop(url: str, asks: Sequence[Ask], times: Sequence[float], in_flight: int) -> list[Sample]:
    async with _client(url) as client:
        began, running = time.perf_counter() + 0.1, set[asyncio.Task[None]]()
        samples = [Sample(began + due) for due in times]
        for ask, sample in zip(asks, samples, strict=True):
            await asyncio.sleep(max(sample.due - time.perf_counter(), 0))
            if len(running) < in_flight:
                running.add(task := asyncio.create_task(_send(client, ask, sample)))
                task.add_done_callback(running.discard)
        await asyncio.gather(*running)
    return samples


async def _closed_loop(url: str, asks: Sequence[Ask], clients: int) -> list[Sample]:
    samples, left = [], iter(asks)

    async def one(client: httpx.AsyncClient) -> None:
        for ask in left:
            samples.append(sample := Sample(time.perf_counter()))
            await _send(client, ask, sample)

    async with _client(url) as client:
        await asyncio.gather(*(one(client) for _ in range(clients)))
    return samples


def _client(url: str) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=2)
    return httpx.AsyncClient(base_url=url, timeout=PATIENCE, limits=limits, trust_env=False)


async def _send(client: httpx.AsyncClient, ask: Ask, sample: Sample) -> None:
    try:
        await _read(client, ask, sample)
    except httpx.HTTPError:
        sample.status = BROKEN_OFF


async def _read(client: httpx.AsyncClient, ask: Ask, sample: Sample) -> None:
    headers = {"Content-Type": "application/json"}
    async with client.stream("POST", ask.path, content=ask.body, headers=headers) as answer:
        sample.status = answer.status_code
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                chunk = json.loads(line[6:])
                for choice in chunk.get("choices", ()):
                    if choice.get("text") or choice.get("delta", {}).get("content"):
                        sample.texts.append(time.perf_counter())
                if "error" in chunk:
                    sample.status = BROKEN_OFF


def figures(samples: Sequence[Sample]) -> dict[str, Any]:
    """Return what the samples say: counts, answers and tokens a second, and percentiles in milliseconds."""
    good = [sample for sample in samples if sample.answered]
    gaps = [gap for sample in good for gap in np.diff(sample.texts).tolist()]
    found: dict[str, Any] = {
        "requests": len(samples),
        "answered": len(good),
        "turned_away": sum(sample.status in (0, 429) for sample in samples),
        "failed": sum(sample.status not in (0, 200, 429) for sample in samples),
    }
    if not good:
        return found
    span = max(sample.texts[-1] for sample in good) - min(sample.due for sample in good)
    return found | {
        "answers_per_second": round(len(good) / span, 3),
        "tokens_per_second": round(sum(len(sample.texts) for sample in good) / span, 2),
        "ttft_ms": percentiles([sample.first for sample in good]),
        "gap_ms": percentiles(gaps),
    }


def percentiles(seconds: Sequence[float]) -> dict[str, float] | None:
    """Return p50, p95 and p99 in milliseconds; None of nothing."""
    if not seconds:
        return None
    values = np.percentile(seconds, [50, 95, 99]) * 1e3
    return {f"p{share}": round(float(value), 1) for share, value in zip((50, 95, 99), values, strict=True)}
