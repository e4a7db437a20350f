"""What a server counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """Of one server; a registry of its own, so that several in one process do not meet."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        # A second gauge beside every counter, of when it was made.
        disable_created_metrics()  # type: ignore[no-untyped-call]

        def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(f"divprune_{name}", text, labels, registry=self.registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"divprune_{name}", text, registry=self.registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
            return Histogram(f"divprune_{name}", text, buckets=buckets, registry=self.registry)

        self.requests = counter(
            "requests",
            "Questions by how they ended: 'answered', 'left', or a code; and other requests that were refused.",
            ("outcome",),
        )
        self.prompt = counter("prompt_tokens", "Tokens of prompts, visual ones included.")
        self.visual = counter("visual_tokens", "Visual tokens of prompts, after pruning.")
        self.candidates = counter("visual_candidates", "Visual tokens before pruning.")
        self.reused = counter("reused_tokens", "Tokens of prompts whose KV cache was there already.")
        self.generated = counter("generated_tokens", "Tokens of answers.")
        self.images_encoded = counter("images_encoded", "Images and clips that the vision encoder ran on.")
        self.images_cached = counter(
            "images_cached", "Images and clips whose visual tokens were there already."
        )
        self.cache_bytes = gauge("image_cache_bytes", "Bytes of the visual tokens that are kept.")
        self.in_flight = gauge("requests_in_flight", "Requests that are not answered yet.")
        self.running = gauge("sequences_running", "Sequences that hold a slot.")
        self.first_token = histogram("first_token_seconds", "From a request to its first token.")
        self.step = histogram("step_seconds", "One decode step of all sequences.")
        self.batch = histogram("step_sequences", "Sequences of a decode step.", (1, 2, 4, 8, 16, 32, 64))

    def refused(self, code: str) -> None:
        """Count a request that never was the engine's."""
        self.requests.labels(code).inc()

    def text(self) -> bytes:
        """Return all of them in Prometheus' text format."""
        return generate_latest(self.registry)
