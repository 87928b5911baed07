"""A real Envoy. Its configuration is a dict, which becomes the JSON file that it reads."""

import contextlib
import json
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from support.mesh import programs
from support.stores import scratch_folder

Config: TypeAlias = dict[str, Any]

RETRY_POLICY: Config = {
    "retry_on": "reset,connect-failure,refused-stream,unavailable,cancelled",
    "num_retries": 3,
    "retry_host_predicate": [
        {
            "name": "envoy.retry_host_predicates.previous_hosts",
            "typed_config": {
                "@type": "type.googleapis.com/"
                "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"
            },
        }
    ],
    "host_selection_retry_max_attempts": 3,
}
NOTHING: Mapping[str, Any] = {}


@dataclass
class Envoy:
    """While it runs: where it serves, and where its administration does (http)."""

    address: str
    admin: str

    def stat(self, name: str) -> int:
        """A counter or gauge by its full name, such as cluster.replicas.upstream_rq_retry."""
        [found] = json.loads(_get(self.admin, f"stats?format=json&filter=^{name}$"))["stats"]
        return int(found["value"])


def gateway(
    upstreams: Sequence[str],
    *,
    filter_chain: Mapping[str, Any] = NOTHING,
    connection_manager: Mapping[str, Any] = NOTHING,
    virtual_host: Mapping[str, Any] = NOTHING,
    route: Mapping[str, Any] = NOTHING,
    cluster: Mapping[str, Any] = NOTHING,
) -> Config:
    """One listener, which spreads calls over the upstreams ("127.0.0.1:50051") and repeats what a mesh is
    usually told to. The other arguments are fields of those messages of Envoy, added to what stands here, or
    in its place."""
    routes = [{"match": {"prefix": "/"}, "route": _route(route)}]
    manager = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3"
        ".HttpConnectionManager",
        "stat_prefix": "grpc",
        "codec_type": "HTTP2",
        "route_config": {
            "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes, **virtual_host}]
        },
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
                },
            }
        ],
        **connection_manager,
    }
    network = {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}
    return {
        "admin": {"address": _socket("127.0.0.1:0")},
        "static_resources": {
            "listeners": [
                {
                    "name": "grpc",
                    "address": _socket("127.0.0.1:0"),
                    "filter_chains": [{"filters": [network], **filter_chain}],
                }
            ],
            "clusters": [_cluster(upstreams, cluster)],
        },
    }


@contextlib.contextmanager
def envoy(config: Config) -> Iterator[Envoy]:
    """Run it until the context ends. Raises NotInstalled."""
    program = programs.find("envoy")
    with scratch_folder() as folder:
        (folder / "config.json").write_text(json.dumps(config))
        admin = folder / "admin"
        command = [program, "--config-path", "config.json", "--admin-address-path", "admin"]
        command += ["--disable-hot-restart", "--concurrency", "1", "--log-level", "warning"]
        with programs.running(command, folder, lambda: _is_live(admin)):
            address = admin.read_text()
            listeners = json.loads(_get(address, "listeners?format=json"))["listener_statuses"]
            [bound] = [status["local_address"]["socket_address"] for status in listeners]
            yield Envoy(f"{bound['address']}:{bound['port_value']}", address)


def _route(changed: Mapping[str, Any]) -> Config:
    return {"cluster": "replicas", "retry_policy": RETRY_POLICY, **changed}


def _cluster(upstreams: Sequence[str], changed: Mapping[str, Any]) -> Config:
    endpoints = [{"endpoint": {"address": _socket(upstream)}} for upstream in upstreams]
    return {
        "name": "replicas",
        "type": "STATIC",
        "connect_timeout": "1s",
        # By default, no more than three calls may be under way again at the same time.
        "circuit_breakers": {"thresholds": [{"max_retries": 100}]},
        "load_assignment": {"cluster_name": "replicas", "endpoints": [{"lb_endpoints": endpoints}]},
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        },
        **changed,
    }


def _socket(address: str) -> Config:
    host, _, port = address.rpartition(":")
    return {"socket_address": {"address": host, "port_value": int(port)}}


def _is_live(admin: Path) -> bool:
    try:
        return _get(admin.read_text(), "ready").strip() == "LIVE"
    except OSError:  # no file yet, no listener yet, or 503: not ready
        return False


def _get(admin: str, path: str) -> str:
    with urllib.request.urlopen(f"http://{admin}/{path}", timeout=5) as answer:
        return str(answer.read().decode())
