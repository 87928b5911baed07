"""How the server on this machine is, asked over HTTP. This runs every few seconds, so it loads nothing of the
service."""

import http.client
import ipaddress
import json
from collections.abc import Sequence
from typing import NamedTuple

from deployment_pipeline.run.settings import Settings

PATHS = {"readiness": "/healthz/ready", "liveness": "/healthz/live"}
ANSWER_SECONDS = 5
MAX_ANSWER_BYTES = 64 * 1024

SERVING = "SERVING"
NOT_SERVING = "NOT_SERVING"


class NobodyToAsk(Exception):
    """The server has no endpoint, or one that cannot be found; the text says why."""


class _Said(NamedTuple):
    status: str
    listen: Sequence[str]


def check(settings: Settings, service: str) -> str:
    """SERVING, NOT_SERVING, or NO_ANSWER or ANOTHER_SERVER with an explanation. service: one of PATHS. Raises
    NobodyToAsk."""
    listen = settings.metrics_listen
    if not listen:
        raise NobodyToAsk("DP_METRICS_LISTEN is empty: the server has no endpoint to ask")
    if listen.endswith(":0"):
        raise NobodyToAsk("DP_METRICS_LISTEN has port 0: nobody can know where the server's endpoint is")
    where = f"at {listen} (DP_METRICS_LISTEN)"
    try:
        said = _ask(listen, PATHS[service])
    except (OSError, http.client.HTTPException):
        return f"NO_ANSWER: no server answers {where}"
    except (ValueError, TypeError, LookupError):
        return f"ANOTHER_SERVER: what answers {where} is not a deployment-pipeline"
    own = [listener.address for listener in settings.listeners]
    if not all(any(is_same(address, other) for other in said.listen) for address in own):
        return (
            f"ANOTHER_SERVER: the one that answers {where} serves gRPC on {', '.join(said.listen)},"
            f" not on {', '.join(own)} (DP_LISTEN)"
        )
    return SERVING if said.status == SERVING else NOT_SERVING


def is_same(one: str, other: str) -> bool:
    """Whether two HOST:PORT can be the same server's. Port 0 is any, and so is the host of what listens
    everywhere."""
    hosts, ports = zip(_parts(one), _parts(other), strict=True)
    return (hosts[0] == hosts[1] or "" in hosts) and (ports[0] == ports[1] or "0" in ports)


def _parts(address: str) -> tuple[str, str]:
    """The host, without the ways to write it; empty: every one. The port."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]").lower().replace("localhost", "127.0.0.1")
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return host, port
    return "" if ip.is_unspecified else str(ip), port


def _ask(listen: str, path: str) -> _Said:
    """Raises OSError, HTTPException, and others if the answer is not of our kind."""
    host, _, port = listen.rpartition(":")
    # What listens everywhere is asked on loopback.
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host.strip("[]"), host.strip("[]"))  # noqa: S104
    connection = http.client.HTTPConnection(host, int(port), timeout=ANSWER_SECONDS)
    try:
        connection.request("GET", path)
        said = json.loads(connection.getresponse().read(MAX_ANSWER_BYTES))
        return _Said(str(said["status"]), [str(address) for address in said["listen"]])
    finally:
        connection.close()
