"""What operators see: counters and gauges, in the form that Prometheus reads."""

import math

from prometheus_client import CollectorRegistry, Gauge

REGISTRY = CollectorRegistry()

TLS_NOT_AFTER = Gauge(
    "dp_tls_not_after_seconds",
    "When the first certificate of the chain that is served expires, in seconds since 1970; NaN without TLS.",
    registry=REGISTRY,
)
TLS_NOT_AFTER.set(math.nan)  # no alert takes it for 1970
