"""Prometheus metrics of a server; their labels are routes, status codes and stamps, never ids or words."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
STEPS = ("decode", "queue", "encode", "search")


class Metrics:
    """The metrics of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(namespace="hystar", registry=self.registry)
        self.requests = Counter("hystar_requests", "Answered requests.", ("route", "code"), registry=self.registry)
        self.total = Histogram(
            "hystar_request_seconds", "Time to answer.", ("route",), buckets=_SECONDS, registry=self.registry
        )
        steps = Histogram(
            "hystar_step_seconds", "Time of one step of a search.", ("step",), buckets=_SECONDS, registry=self.registry
        )
        self.steps = {step: steps.labels(step) for step in STEPS}
        self.batches = Histogram(
            "hystar_batch_size", "Requests of a pass of the encoder.", buckets=_SIZES, registry=self.registry
        )
        self.rejected = Counter("hystar_rejected", "Refused requests.", ("reason",), registry=self.registry)
        self.not_finite = Counter("hystar_not_finite", "NaN or inf from the model.", registry=self.registry)
        self.gone = Counter("hystar_pictures_gone", "Pictures whose file was not there.", registry=self.registry)
        self._stamps = Gauge(
            "hystar_index_stamp", "1 for the stamp of each view.", ("view", "stamp"), registry=self.registry
        )

    def watch(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Publish a number that is read when the metrics are."""
        Gauge(f"hystar_{name}", text, registry=self.registry).set_function(value)

    def observe(self, timing: Mapping[str, float]) -> None:
        """Record the milliseconds of each step of a search."""
        for step, milliseconds in timing.items():
            self.steps[step].observe(milliseconds / 1000)

    def show_stamps(self, stamps: Mapping[str, str]) -> None:
        """Publish the stamps of the views in place of earlier ones."""
        self._stamps.clear()
        for view, stamp in stamps.items():
            self._stamps.labels(view, stamp).set(1)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)
