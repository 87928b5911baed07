"""Looking at processes, on Linux."""

import asyncio
import contextlib
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def gone(pid: int) -> bool:
    """A process that nobody waits for stays as a zombie: it has ended, too."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def accepted_by(pids: Iterable[int], connection: socket.socket) -> int:
    """Which of these processes has the other end of a connection."""
    ends = [f":{name[1]:04X}" for name in (connection.getpeername(), connection.getsockname())]
    for file in ("tcp", "tcp6"):  # gRPC's sockets are of IPv6, for IPv4 addresses, too
        for row in Path("/proc/net", file).read_text().splitlines()[1:]:
            _, local, remote, _, _, _, _, _, _, inode, *_ = row.split()
            if [local[-5:], remote[-5:]] == ends:
                [pid] = [pid for pid in pids if f"socket:[{inode}]" in _open(pid)]
                return pid
    raise AssertionError("the connection has ended")


def _open(pid: int) -> Iterator[str]:
    """What its file descriptors are."""
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            yield str(file.readlink())


async def all_gone(pids: Iterable[int], seconds: float = 10) -> bool:
    """Within that time."""
    left = list(pids)
    for _ in range(round(seconds / 0.02)):
        left = [pid for pid in left if not gone(pid)]
        if not left:
            return True
        await asyncio.sleep(0.02)
    return False
