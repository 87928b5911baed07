"""What keeps a worker from starting is said once, and nothing is left behind."""

import os
import socket
import sys

import pytest

from deployment_pipeline.run.workers import CannotStart, supervise


async def test_a_worker_that_cannot_start_ends_the_supervisor(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    served: list[int] = []
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(CannotStart):
        await supervise(2, f"127.0.0.1:{port}", os.environ, served.append)
    assert not served
    with socket.socket() as again:
        again.bind(("127.0.0.1", port))
