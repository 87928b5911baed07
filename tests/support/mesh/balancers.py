"""A real haproxy and a real nginx, as configured for gRPC in docs/operate.md."""

import contextlib
from collections.abc import Iterator, Sequence

from support.mesh import programs
from support.stores import scratch_folder

HAPROXY = """\
defaults
    mode http
    timeout connect 1s
    timeout client 1h
    timeout server 1h
    retries 3
    retry-on all-retryable-errors
    option redispatch 1

frontend grpc
    bind 127.0.0.1:{port} proto h2
    {identity}
    default_backend replicas

backend replicas
    balance roundrobin
{servers}
"""
# The same on every attempt, for the header is set before the first one.
IDENTITY = "http-request set-header x-request-id %[uuid] unless {{ req.hdr(x-request-id) -m found }}"

NGINX = """\
daemon off;
master_process off;
pid pid;
error_log stderr warn;
events {{}}
http {{
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    upstream replicas {{
{servers}
        keepalive 16;
    }}
    server {{
        listen 127.0.0.1:{port} http2;
        location / {{
            grpc_pass grpc://replicas;
            grpc_next_upstream error timeout http_502 http_503 http_504 non_idempotent;
            grpc_next_upstream_tries 4;
        }}
    }}
}}
"""


@contextlib.contextmanager
def haproxy(upstreams: Sequence[str], *, identity: bool = False) -> Iterator[str]:
    """It repeats all that it can. identity: it gives each call an x-request-id. Yields its address. Raises
    NotInstalled."""
    program = programs.find("haproxy")
    servers = "\n".join(f"    server r{n} {address} proto h2" for n, address in enumerate(upstreams))
    port = programs.free_port()
    text = HAPROXY.format(port=port, servers=servers, identity=IDENTITY.format() if identity else "")
    with scratch_folder() as folder:
        (folder / "config").write_text(text)
        with programs.running([program, "-db", "-f", "config"], folder, lambda: programs.listens(port)):
            yield f"127.0.0.1:{port}"


@contextlib.contextmanager
def nginx(upstreams: Sequence[str]) -> Iterator[str]:
    """It is told to repeat what it can. Yields its address. Raises NotInstalled."""
    program = programs.find("nginx")
    servers = "\n".join(f"        server {address} max_fails=0;" for address in upstreams)
    port = programs.free_port()
    with scratch_folder() as folder:
        (folder / "config").write_text(NGINX.format(port=port, servers=servers))
        command = [program, "-p", str(folder), "-c", "config", "-e", "stderr"]
        with programs.running(command, folder, lambda: programs.listens(port)):
            yield f"127.0.0.1:{port}"
