"""The server's certificate is replaced under load, as Kubernetes replaces a mounted Secret: no call fails."""

import asyncio
import json
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import pytest
from cryptography import x509

from deployment_pipeline.edge import reloading
from deployment_pipeline.run.server import running
from deployment_pipeline.run.settings import Settings
from support.certificates import Authority, Pair, Secret, caller
from support.certified import CI
from support.processes import children
from support.rotation import NEW, OLD, Handshakes, load
from support.secured import grant
from support.servers import Server
from support.stores import Stores
from support.table import NOTES

LISTEN = "tls://127.0.0.1:0,mtls://127.0.0.1:0"
# Of each kind, between two replacements, at least.
CALLS = 20
# What is promised of tokens that are taken out, too (docs/security.md).
SERVED_SECONDS = 5.0


class Workers(Server):
    arguments = ("serve", "--workers", "2")


@pytest.fixture
def own(folder: Path, secret: Secret) -> dict[str, Any]:
    """Settings of a server with a tls and an mtls listener, which lets everybody look."""
    grants = folder / "grants.toml"
    grants.write_text(grant(f'id = "{CI}"', "viewer"))
    return {**secret.settings(), "listen": LISTEN, "anonymous": "viewer", "grants_file": grants}


@pytest.fixture
def workers(stores: Stores, own: dict[str, Any], log: TextIO) -> Iterator[Workers]:
    settings = {"database_url": stores.database_url, "redis_url": stores.redis_url, **own}
    started = Workers({f"DP_{name.upper()}": str(value) for name, value in settings.items()}, log)
    yield started
    if started.process.poll() is None:
        started.stop(signal.SIGKILL)


def ways(authority: Authority, addresses: Sequence[str]) -> Sequence[tuple[str, Any]]:
    tls, mtls = addresses
    return (tls, caller(authority)), (mtls, caller(authority, authority.client(CI)))


def serial(pair: Pair) -> int:
    return x509.load_pem_x509_certificate(pair.chain).serial_number


async def test_no_call_fails_however_often_the_certificate_is_replaced(
    settings: Settings,
    own: dict[str, Any],
    secret: Secret,
    authority: Authority,
    pipeline: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reloading, "LOOK_SECONDS", 0.01)
    handshakes = Handshakes(authority.client(CI))
    async with running(settings.model_copy(update=own)) as bound, asyncio.timeout(60):
        addresses = [listener.address for listener in bound]
        async with load(ways(authority, addresses), pipeline, callers=4) as calls:
            for _ in range(5):
                before, pair = calls.copy(), authority.server()
                secret.put(pair.key, pair.chain, authority.pem)
                for address in addresses:
                    while await asyncio.to_thread(handshakes.serial, address) != serial(pair):
                        pass
                while any(calls[kind] <= before[kind] + CALLS for kind in (OLD, NEW)):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)


@pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc")
async def test_every_worker_serves_a_new_certificate_in_time_and_no_call_fails(
    workers: Workers, secret: Secret, authority: Authority, pipeline: str, log: TextIO
) -> None:
    handshakes = Handshakes(authority.client(CI))
    pids = children(workers.process.pid)
    assert len(pids) == 2
    # By address and process: the serial number that it showed last.
    served: dict[tuple[str, int], int] = {}
    # From a replacement to the last connection that got the certificate before.
    seconds = [0.0]

    async def connect(address: str) -> int:
        pid, shown = await asyncio.to_thread(handshakes.taken_by, address, pids)
        served[address, pid] = shown
        return shown

    async with (
        asyncio.timeout(120),
        load(ways(authority, workers.addresses), pipeline, callers=8) as calls,
    ):
        for _ in range(3):
            before, pair = calls.copy(), authority.server()
            secret.put(pair.key, pair.chain, authority.pem)
            replaced_at, new = time.monotonic(), serial(pair)
            while len(served) < 4 or {*served.values()} != {new}:
                for address in workers.addresses:
                    began_after = time.monotonic() - replaced_at
                    if await connect(address) != new:
                        seconds.append(began_after)
                        assert began_after <= SERVED_SECONDS
            while any(calls[kind] <= before[kind] + CALLS for kind in (OLD, NEW)):
                for address in workers.addresses:
                    assert await connect(address) == new, "none goes back to the one before"
    NOTES.append(
        f"two workers: the old certificate until {max(seconds):.1f} s, no call failed: {dict(calls)}"
    )
    assert await asyncio.to_thread(workers.stop) == 0
    log.seek(0)
    lines = [line for line in map(json.loads, log) if line["event"] == "call"]
    assert {line["code"] for line in lines} == {"OK"}
    assert {line["worker"] for line in lines} == {1, 2}
    assert {line.get("principal", "") for line in lines} == {"", CI}
    assert len(lines) == calls.total()
