"""What a process says of itself to whoever asks: over HTTP, or over its lifeline."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass


@dataclass
class Report:
    """listen: the gRPC addresses, HOST:PORT; a port may be 0 until the address is taken. is_ready: whether it
    should get calls. exposition: the metrics, in Prometheus's text format."""

    listen: Sequence[str]
    is_ready: Callable[[], bool]
    exposition: Callable[[], Awaitable[str]]
