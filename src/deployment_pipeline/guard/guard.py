"""The Redis side of exclusivity: it saves Postgres work, and can do no harm.

Two keys per pipeline (the braces make them share a cluster slot):

    dp:active:{pipeline}   the id of the active deployment, set with NX. Alone it refuses nobody.
    dp:lease:{pipeline}    C:seq:id:until:...  Postgres confirmed that this deployment is active; it refuses
                                               until that time, or
                           T:seq               this deployment, or one after it, is over (a tombstone).

A trigger passes the *gate*. It is refused there only by a C lease whose time has not passed and whose id is
also in dp:active. Else it goes on to Postgres, which judges; what Postgres said is *filled* in. The *end* of
a deployment leaves a tombstone, in the time between its commit and the answer to its caller.

Why a refusal is true: a lease refuses until t0 + T_c on Redis's clock, and t0 was read (by the gate) before
the Postgres statement behind the lease began. So a refusal at time t proves that the deployment was active at
some instant after t - T_c, however long a process slept or a packet was late.

Why a late fill cannot bring a deployment back: either its time has passed, or the key still says that
deployments up to its seq are over. That lives for T_c from the last end: a fill keeps what is left of a
tombstone's life, and a C lease says that those before its seq are over. (The test's model of this protocol
tries every interleaving; it is not obvious.)

Why nothing gets stuck: dp:active refuses nobody by itself, and no lease refuses for longer than T_c. A key
left by a crash, forged or of the wrong type costs one Postgres statement and is overwritten.

Why losing Redis is harmless: every step gives up after BUDGET_SECONDS and is never repeated (a SET NX whose
reply was late, sent again, would read as somebody else's). After a few failures the breaker opens, and
nobody waits for Redis until a probe succeeds.
"""

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, NamedTuple
from uuid import UUID

import structlog
from redis.asyncio import Connection, ConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError, ResponseError

from deployment_pipeline import deadline
from deployment_pipeline.gathering import Gathering
from deployment_pipeline.model import Deployment

BUDGET_SECONDS = 0.05
# What the end of a deployment still waits for a Redis that was given up: a sound one answers in less.
OPEN_BUDGET_SECONDS = 0.01
CONNECTIONS = 32
FAILURES_TO_OPEN = 3
OPEN_SECONDS = 1.0
# dp:active is only a hint; its life just keeps garbage from staying. A reservation is one for a call.
ACTIVE_TTL_MS = 24 * 60 * 60 * 1000
RESERVED_TTL_MS = round(deadline.LONGEST_CALL_SECONDS * 1000)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

# Every script gets KEYS = {active, lease}. A key of another type than ours is thrown away.
_PRELUDE = """
local function read(key)
    local value = redis.pcall('GET', key)
    if type(value) == 'table' then
        redis.call('DEL', key)
        return false
    end
    return value
end
local function now_ms()
    local t = redis.call('TIME')
    return t[1] * 1000 + math.floor(t[2] / 1000)
end
local function newest_seq(lease) -- of the confirmed, and of the ended
    if not lease then return -1, -1 end
    local newer, ended = string.match(lease, '^C:(%d+):'), string.match(lease, '^T:(%d+)$')
    return tonumber(newer) or -1, tonumber(ended) or -1
end
local function let_go(id)
    if read(KEYS[1]) == id then redis.call('DEL', KEYS[1]) end
end
"""


class _Script:
    def __init__(self, text: str) -> None:
        self.text = _PRELUDE + text
        # Redis names scripts so; nothing is kept secret by it.
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


# ARGV: my id, T_c, TTL of the reservation. Returns t0, and after a space what refuses, RESERVED or VERIFY.
_GATE = _Script("""
local now = now_ms()
local t0 = string.format('%.0f', now)
local lease, active = read(KEYS[2]), read(KEYS[1])
if lease and active then
    local id, until_ms = string.match(lease, '^C:%d+:([%x-]+):(%d+):')
    local left = (tonumber(until_ms) or 0) - now
    if id == active and left > 0 and left <= tonumber(ARGV[2]) then return t0 .. ' ' .. lease end
end
if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[3]) then return t0 .. ' RESERVED' end
return t0 .. ' VERIFY'
""")

# ARGV: seq and id of the active one, its lease, t0 + T_c, TTL of active, the id that passed the gate, T_c.
_FILL = _Script("""
local now, until_ms = now_ms(), tonumber(ARGV[4])
local newer, ended = newest_seq(read(KEYS[2]))
if now >= until_ms or newer > tonumber(ARGV[1]) or ended >= tonumber(ARGV[1]) then
    let_go(ARGV[6])
    return 0
end
local kept = math.min(redis.call('PTTL', KEYS[2]), tonumber(ARGV[7]))
redis.call('SET', KEYS[2], ARGV[3], 'PX', string.format('%.0f', math.max(until_ms - now, kept)))
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[5])
return 1
""")

# ARGV: seq and id of the ended one, T_c, TTL of active, the id that took its slot or ''. A late end may
# throw away the lease of the one that followed, which costs a Postgres statement; what that lease said of
# those before it is kept.
_END = _Script("""
local newer, ended = newest_seq(read(KEYS[2]))
local over = math.max(tonumber(ARGV[1]), newer - 1, ended)
redis.call('SET', KEYS[2], string.format('T:%.0f', over), 'PX', ARGV[3])
if read(KEYS[1]) == ARGV[2] then
    if ARGV[5] == '' then
        redis.call('DEL', KEYS[1])
    else
        redis.call('SET', KEYS[1], ARGV[5], 'PX', ARGV[4])
    end
end
return 1
""")

# ARGV: the id that reserved.
_RELEASE = _Script("let_go(ARGV[1]) return 1")

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Lease:
    """What Redis knows of an active deployment: confirmed by Postgres within the last T_c."""

    seq: int
    id: UUID
    until_ms: int  # on Redis's clock
    since: datetime
    stage: str
    version: str

    def dump(self) -> str:
        since_us = (self.since - _EPOCH) // _MICROSECOND
        return f"C:{self.seq}:{self.id}:{self.until_ms}:{since_us}:{self.stage}:{self.version}"

    @classmethod
    @lru_cache(maxsize=1024)  # a lease refuses many
    def load(cls, text: bytes) -> "Lease | None":
        """None if it is not ours: somebody else wrote it."""
        try:
            _, seq, id, until_ms, since_us, stage, version = text.decode().split(":", 6)
            since = _EPOCH + int(since_us) * _MICROSECOND
            return cls(int(seq), UUID(id), int(until_ms), since, stage, version)
        except (ValueError, OverflowError):
            return None


class _Step(NamedTuple):
    """A script to run."""

    script: _Script
    keys_and_arguments: Sequence[str | int]


@dataclass(frozen=True, slots=True)
class Passage:
    """What the gate said."""

    t0_ms: int | None  # Redis's time at the gate; None: Redis did not answer
    refused_by: Lease | None = None


class Guard:
    """The Redis client of one process. `close` ends its connections."""

    def __init__(self, redis_url: str, lease_ms: int, max_batch: int) -> None:
        self._lease_ms = lease_ms
        self._pool: ConnectionPool = ConnectionPool.from_url(
            redis_url,
            max_connections=CONNECTIONS,
            # A batch has one time limit, in _send; a timer for every write and read costs more than those.
            socket_timeout=None,
            socket_connect_timeout=None,
            retry=Retry(NoBackoff(), 0),
        )
        self._redis = Redis.from_pool(self._pool)
        self._steps = Gathering(self._send, max_batch)
        self._failures = 0
        self._closed_again_at = 0.0

    async def close(self) -> None:
        await self._redis.aclose()

    async def greet(self) -> None:
        """At the start: say in the log if Redis does not answer. Nothing depends on it."""
        try:
            async with asyncio.timeout(OPEN_SECONDS):
                await self._redis.ping()
        except (RedisError, OSError) as error:
            log.warning("redis does not answer: triggers go to postgres", error=str(error))

    async def gate(self, pipeline: str, id: UUID) -> Passage:
        """Before a trigger: is it known to be hopeless? If not, reserve the pipeline for this id."""
        answer: bytes | None = await self._run(_GATE, pipeline, str(id), self._lease_ms, RESERVED_TTL_MS)
        if answer is None:
            return Passage(None)
        t0, verdict = answer.split(b" ", 1)
        return Passage(int(t0), Lease.load(verdict) if verdict.startswith(b"C:") else None)

    async def fill(self, passage: Passage, active: Deployment, passed: UUID) -> None:
        """After Postgres named the active deployment: the trigger `passed` started it, or met it."""
        if passage.t0_ms is None or active.started_at is None:
            return
        lease = Lease(
            active.seq,
            active.id,
            passage.t0_ms + self._lease_ms,
            active.started_at,
            active.current_stage,
            active.version,
        )
        await self._run(
            _FILL,
            active.pipeline_name,
            lease.seq,
            str(lease.id),
            lease.dump(),
            lease.until_ms,
            ACTIVE_TTL_MS,
            str(passed),
            self._lease_ms,
        )

    async def end(self, ended: Deployment, started: UUID | None) -> None:
        """After the commit that freed the slot, before its caller gets the answer; `started` took it."""
        await self._run(
            _END,
            ended.pipeline_name,
            ended.seq,
            str(ended.id),
            self._lease_ms,
            ACTIVE_TTL_MS,
            str(started or ""),
            always=True,
        )

    async def release(self, pipeline: str, id: UUID) -> None:
        """A trigger that passed the gate came to nothing: take its reservation back."""
        await self._run(_RELEASE, pipeline, str(id))

    async def _run(self, script: _Script, pipeline: str, *args: str | int, always: bool = False) -> Any:
        """One script's answer; None if Redis is away, slow or broken. always: try it even while the breaker
        is open, for others may see a Redis that we have given up, and must see the tombstone in it."""
        loop = asyncio.get_running_loop()
        budget = BUDGET_SECONDS
        if self._failures >= FAILURES_TO_OPEN:
            if loop.time() >= self._closed_again_at:
                # This call probes; the others go on without Redis meanwhile.
                self._closed_again_at = loop.time() + OPEN_SECONDS
            elif always:
                budget = OPEN_BUDGET_SECONDS
            else:
                return None
        keys = (f"dp:active:{{{pipeline}}}", f"dp:lease:{{{pipeline}}}")
        step = self._steps.ask(_Step(script, (*keys, *args)))
        try:
            if always:  # it is sent even if nobody waits for it any more
                async with asyncio.timeout(budget):
                    return await asyncio.shield(step)
            timer = deadline.limit(step, budget)
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
        self._closed_again_at = asyncio.get_running_loop().time() + OPEN_SECONDS
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
