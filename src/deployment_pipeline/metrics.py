"""What operators see: counters and gauges, in the form that Prometheus reads. Each process counts for itself.

Calls are counted under the names and labels that every dashboard for gRPC knows. There are many, so they are
plain numbers, which cost a fifth of what Counters do; one thread counts them all.
"""

import math
from bisect import bisect_left
from collections import Counter as Counts
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import accumulate

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Info,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

# Bounds of the histogram: from an answer out of memory to the longest that a call may take.
CALL_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_METHOD = ("grpc_type", "grpc_service", "grpc_method")

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each, which nobody reads

REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)
BUILD = Info("dp_build", "The release that runs.", registry=REGISTRY)
REFUSALS = Counter(
    "dp_refusals",
    "Refused calls. served_from says of PIPELINE_BUSY whether a lease in Redis refused, or Postgres.",
    ("reason", "served_from"),
    registry=REGISTRY,
)
FILE_FAILURES = Counter(
    "dp_file_failures",
    "Changed files of certificates, tokens, grants or keys that could not be used: the last good ones hold.",
    registry=REGISTRY,
)
TLS_NOT_AFTER = Gauge(
    "dp_tls_not_after_seconds",
    "When the first certificate of the chain that is served expires, in seconds since 1970; NaN without TLS.",
    registry=REGISTRY,
)
TLS_NOT_AFTER.set(math.nan)  # no alert takes it for 1970


class _Method:
    """The calls of one method. labels: the values of _METHOD."""

    def __init__(self, *labels: str) -> None:
        self.labels = labels
        self.started = 0
        self.handled = Counts[str](OK=0)  # by code
        self.seconds = 0.0
        self.counts = [0] * (len(CALL_SECONDS) + 1)  # between the bounds

    def buckets(self) -> Sequence[tuple[str, float]]:
        """As the format has them: each bound, with all calls that did not take longer."""
        return [*zip([*map(str, CALL_SECONDS), "+Inf"], accumulate(self.counts), strict=True)]


class _Calls(Collector):
    def collect(self) -> Iterator[Metric]:
        started = CounterMetricFamily("grpc_server_started", "Calls that have begun.", labels=_METHOD)
        handled = CounterMetricFamily(
            "grpc_server_handled", "Calls that have ended, by their code.", labels=(*_METHOD, "grpc_code")
        )
        handling = HistogramMetricFamily(
            "grpc_server_handling_seconds", "From a call's request to its end.", labels=_METHOD
        )
        for method in _methods.values():
            started.add_metric(method.labels, method.started)
            for code, count in method.handled.items():
                handled.add_metric((*method.labels, _code(code)), count)
            handling.add_metric(method.labels, method.buckets(), method.seconds)
        yield from (started, handled, handling)


_methods: dict[str, _Method] = {}
REGISTRY.register(_Calls())


def expect(service: str, method: str, *, streams: bool) -> None:
    """Calls of this method will be counted. streams: its answer is a stream."""
    _methods.setdefault(method, _Method("server_stream" if streams else "unary", service, method))


def call_began(method: str) -> None:
    _methods[method].started += 1


def call_ended(method: str, code: str, seconds: float) -> None:
    """code: its name, like NOT_FOUND."""
    counted = _methods[method]
    counted.handled[code] += 1
    counted.seconds += seconds
    counted.counts[bisect_left(CALL_SECONDS, seconds)] += 1


def refused(reason: str, served_from: str) -> None:
    _refusals(reason, served_from).inc()


@cache
def _refusals(reason: str, served_from: str) -> Counter:
    return REFUSALS.labels(reason, served_from)


def _code(name: str) -> str:
    """As gRPC for Go has it, and with it everybody's dashboards: NOT_FOUND is NotFound."""
    return {"OK": "OK", "CANCELLED": "Canceled"}.get(name) or name.title().replace("_", "")


def exposition() -> str:
    """All of it, as text."""
    return generate_latest(REGISTRY).decode()
