"""Redis scripts in one write, given up after a short time, and left alone while Redis is away."""

import asyncio
import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import structlog
from redis.asyncio import Connection, Redis
from redis.exceptions import NoScriptError, RedisError, ResponseError

from deployment_pipeline import call
from deployment_pipeline.gathering import Gathering
from deployment_pipeline.guard.pool import connections_to

BUDGET_SECONDS = 0.05
# What a step that is always tried still waits for a Redis that was given up: a sound one answers in less.
OPEN_BUDGET_SECONDS = 0.01
FAILURES_TO_OPEN = 3
# How long Redis is left alone before it is probed again.
BREAKER_SECONDS = 1.0
GREETING_SECONDS = 1.0

log = structlog.get_logger()


class Script:
    """A file in scripts/, behind the prelude."""

    def __init__(self, name: str) -> None:
        self.text = _file("prelude") + _file(name)
        # Redis names scripts so; nothing is kept secret by it.
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


@cache
def _file(name: str) -> str:
    return (Path(__file__).parent / "scripts" / f"{name}.lua").read_text()


class _Step(NamedTuple):
    """A script to run."""

    script: Script
    keys_and_arguments: Sequence[str | int]


class Scripts:
    """The Redis client of one process. `close` ends its connections."""

    def __init__(self, redis_url: str, installation: str, max_batch: int) -> None:
        self._pool = connections_to(redis_url)
        self._installation = installation
        self._redis = Redis.from_pool(self._pool)
        self._steps = Gathering(self._send, max_batch)
        self._failures = 0
        self._closed_again_at = 0.0

    async def close(self) -> None:
        await self._redis.aclose()

    async def greet(self) -> None:
        """At the start: say in the log if Redis does not answer. Nothing depends on it."""
        try:
            async with asyncio.timeout(GREETING_SECONDS):
                await self._redis.ping()
        except (RedisError, OSError) as error:
            log.warning("redis does not answer: triggers go to postgres", error=str(error))

    async def run(self, script: Script, pipeline: str, *args: str | int, always: bool = False) -> Any:
        """One script's answer; None if Redis is away, slow or broken. always: try it even while the breaker
        is open, for others may see a Redis that we have given up, and must see the tombstone in it."""
        loop = asyncio.get_running_loop()
        budget = BUDGET_SECONDS
        if self._failures >= FAILURES_TO_OPEN:
            if loop.time() >= self._closed_again_at:
                # This call probes; the others go on without Redis meanwhile.
                self._closed_again_at = loop.time() + BREAKER_SECONDS
            elif always:
                budget = OPEN_BUDGET_SECONDS
            else:
                return None
        name = f"{{{pipeline}}}:{self._installation}"
        keys = (f"dp:active:{name}", f"dp:lease:{name}")
        step = self._steps.ask(_Step(script, (*keys, *args)))
        try:
            if always:  # it is sent even if nobody waits for it any more
                async with asyncio.timeout(budget):
                    return await asyncio.shield(step)
            timer = call.limit(step, budget)
            try:
                return await step
            finally:
                timer.cancel()
        except (RedisError, OSError):
            return None

    async def _send(self, steps: Sequence[_Step]) -> list[Any]:
        """All of them in one write; each step's answer or error."""
        try:
            answers = await self._answers(steps)
        except (RedisError, OSError) as error:
            self._failed(error)
            raise
        errors = [answer for answer in answers if isinstance(answer, RedisError)]
        if errors:
            self._failed(errors[0])
        else:
            if self._failures >= FAILURES_TO_OPEN:
                log.info("redis is back")
            self._failures = 0
        return answers

    def _failed(self, error: Exception) -> None:
        """A round trip, not each of its steps: a process that was held up for a moment failed once."""
        self._failures += 1
        self._closed_again_at = asyncio.get_running_loop().time() + BREAKER_SECONDS
        if self._failures == FAILURES_TO_OPEN:
            log.warning("redis is left out: triggers go to postgres", error=str(error))

    async def _answers(self, steps: Sequence[_Step]) -> list[Any]:
        async with asyncio.timeout(BUDGET_SECONDS):
            answers = await self._together([("EVALSHA", step.script.sha) for step in steps], steps)
            unknown = [i for i, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
            if unknown:  # Redis is new: it gets the scripts with the steps that it could not do
                again = [steps[i] for i in unknown]
                said = await self._together([("EVAL", step.script.text) for step in again], again)
                for i, answer in zip(unknown, said, strict=True):
                    answers[i] = answer
        return answers

    async def _together(self, commands: Sequence[tuple[str, str]], steps: Sequence[_Step]) -> list[Any]:
        # Past redis-py's Pipeline, which takes as long as all the rest of a trigger that Redis refuses.
        connection = await self._pool.get_connection()  # type: ignore[no-untyped-call]  # redis-py's decorator
        try:
            await connection.send_packed_command(
                connection.pack_commands(
                    (*command, 2, *step.keys_and_arguments)
                    for command, step in zip(commands, steps, strict=True)
                )
            )
            return [await _answer(connection) for _ in steps]
        finally:
            await self._pool.release(connection)


async def _answer(connection: Connection) -> Any:
    try:
        return await connection.read_response()
    except ResponseError as error:
        return error
