"""The service with failpoints: what `python -m support.faulty_server serve` runs. They exist only here, so a
service that is installed cannot have them.

A failpoint fires when a file of its name lies in DP_TEST_FAILPOINTS: kill, stop (SIGSTOP), or a number of
seconds to sleep. The file is taken away as it fires, and its name is added to the file `reached`.
DP_TEST_GUARD=plain-nx puts a plain SET NX lock in the place of the guard.
"""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from deployment_pipeline import commands
from deployment_pipeline.cli import main as cli
from deployment_pipeline.guard import redis as guard_redis
from deployment_pipeline.guard.guard import Guard
from deployment_pipeline.guard.lease import Lease, Passage
from deployment_pipeline.postgres.changes import Changes

FOLDER = Path(os.environ["DP_TEST_FAILPOINTS"])

# The points before and after a method, for commands of one kind or for all calls.
POINTS: dict[tuple[type, str, type | None], tuple[str, str]] = {
    (Guard, "gate", None): ("trigger.before_gate", "trigger.after_gate"),
    (Changes, "make", commands.TriggerDeployment): ("trigger.before_commit", "trigger.after_commit"),
    (Guard, "fill", None): ("trigger.before_fill", "trigger.after_fill"),
    (Changes, "make", commands.AdvanceStage): ("advance.before_commit", "advance.after_commit"),
    (Changes, "make", commands.CancelDeployment): ("cancel.before_commit", "cancel.after_commit"),
    (Guard, "end", None): ("end.before_redis", "end.after_redis"),
}


async def hit(point: str) -> None:
    armed, taken = FOLDER / point, FOLDER / f"{point}.{os.getpid()}"
    try:
        armed.rename(taken)  # one process gets it
    except FileNotFoundError:
        return
    action = taken.read_text()
    taken.unlink()
    with (FOLDER / "reached").open("a") as reached:
        reached.write(f"{point}\n")
    match action:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case seconds:
            await asyncio.sleep(float(seconds))


def with_points(method: Callable[..., Awaitable[Any]], command: type | None, before: str, after: str) -> Any:
    async def call(self: Any, asked: Any, *arguments: Any, **named: Any) -> Any:
        if command and not isinstance(asked, command):
            return await method(self, asked, *arguments, **named)
        await hit(before)
        result = await method(self, asked, *arguments, **named)
        await hit(after)
        return result

    return call


class PlainNX(Guard):
    """What many would write: SET NX, and whoever finds the key is refused."""

    async def gate(self, pipeline: str, id: Any) -> Passage:
        key = f"dp:active:{{{pipeline}}}"
        if await self._redis._redis.set(key, str(id), nx=True):
            return Passage(None)
        holder: Any = await self._redis._redis.get(key)
        if holder == str(id).encode():  # it asked before it stood in line
            return Passage(None)
        return Passage(0, Lease.load(b"C:1:%s:0:0:?:?" % (holder or b"")))

    async def fill(self, passage: Passage, active: Any, passed: Any) -> None:
        pass

    async def end(self, ended: Any, started: Any) -> None:
        await self._redis._redis.delete(f"dp:active:{{{ended.pipeline_name}}}")


def main() -> None:
    # A machine that stalls for a moment is not a Redis that is away, for which S3 makes an exception.
    guard_redis.BUDGET_SECONDS = 0.5
    if os.environ.get("DP_TEST_GUARD") == "plain-nx":
        for name in ("gate", "fill", "end"):
            setattr(Guard, name, getattr(PlainNX, name))
    for (owner, name, command), points in POINTS.items():
        setattr(owner, name, with_points(getattr(owner, name), command, *points))
    cli.main()


if __name__ == "__main__":
    main()
