"""Looking at processes, on Linux."""

import asyncio
from collections.abc import Iterable
from pathlib import Path


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def gone(pid: int) -> bool:
    """A process that nobody waits for stays as a zombie: it has ended, too."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


async def all_gone(pids: Iterable[int], seconds: float = 10) -> bool:
    """Within that time."""
    left = list(pids)
    for _ in range(round(seconds / 0.02)):
        left = [pid for pid in left if not gone(pid)]
        if not left:
            return True
        await asyncio.sleep(0.02)
    return False
