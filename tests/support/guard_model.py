"""The guard's protocol as a small explicit-state model, searched exhaustively.

A few triggers, and the ends of what they start, run against one Postgres and one Redis. Every interleaving of
their steps is tried, with a crash of any of them after any step, one FLUSHALL at any moment, and a clock that
ticks between any two steps for as long as it likes: all times are kept relative to now, so that the states
are finitely many. A protocol says what gate, fill and end do to Redis.
"""

from collections.abc import Iterator
from typing import NamedTuple

T_C = 2  # ticks
LONG_AGO = -T_C - 1
ORPHAN = -99  # a reservation of somebody who is gone


class Redis(NamedTuple):
    active: int = 0  # a seq stands for the deployment's id, a negative number for a reservation; 0: none
    # Kind, seq, for how many ticks it refuses, in how many its key dies.
    lease: tuple[str, int, int, int] | None = None


class Worker(NamedTuple):
    """One trigger; the fill that follows it, and the end of what it started, go on independently."""

    step: str = "gate"  # gate, postgres, after
    t0: int = 0  # when it passed the gate
    saw: int = 0  # the seq that Postgres named as active, while its fill is still to come
    started: int = 0  # the seq that it started
    end: str = ""  # "", committed (in Postgres), over


OVER = Worker("after", 0, 0, 0, "over")


class World(NamedTuple):
    workers: tuple[Worker, ...]
    redis: Redis = Redis()
    active: int = 0  # the seq that is IN_PROGRESS in Postgres
    ended: tuple[int, ...] = ()  # by seq: when it ended; 1 while it has not
    acknowledged: frozenset[int] = frozenset()  # seqs whose end was acknowledged
    flushed: bool = False  # Redis has lost something: S3 promises nothing any more


NO_LEASE = ("", 0, 0, 0)


class Lease:
    """The protocol of guard.py."""

    def gate(self, redis: Redis, me: int) -> tuple[Redis, int]:
        """Redis afterwards, and the seq that refuses; 0: it may pass."""
        kind, seq, refuses, _ = redis.lease or NO_LEASE
        if kind == "C" and seq == redis.active and refuses > 0:
            return redis, seq
        return (redis if redis.active else redis._replace(active=me)), 0

    def fill(self, redis: Redis, me: int, seq: int, t0: int) -> Redis:
        kind, other, _, life = redis.lease or NO_LEASE
        late = t0 + T_C <= 0
        if late or (kind == "C" and other > seq) or (kind == "T" and other >= seq):
            return redis._replace(active=0) if redis.active == me else redis
        return Redis(seq, ("C", seq, t0 + T_C, max(life, t0 + T_C)))

    def end(self, redis: Redis, seq: int) -> Redis:
        kind, other, _, _ = redis.lease or NO_LEASE
        newest = max(seq, other if kind == "T" else other - 1)
        return Redis(0 if redis.active == seq else redis.active, ("T", newest, 0, T_C))


class PlainNX(Lease):
    """SET NX, and whoever finds the key is refused."""

    def gate(self, redis: Redis, me: int) -> tuple[Redis, int]:
        return (redis, redis.active) if redis.active else (redis._replace(active=me), 0)

    def fill(self, redis: Redis, me: int, seq: int, t0: int) -> Redis:
        return redis._replace(active=seq)

    def end(self, redis: Redis, seq: int) -> Redis:
        return redis._replace(active=0) if redis.active == seq else redis


class TTLCache(Lease):
    """What Postgres said is remembered for T_c from when it is written down, and deleted at the end."""

    def gate(self, redis: Redis, me: int) -> tuple[Redis, int]:
        return redis, redis.lease[1] if redis.lease else 0

    def fill(self, redis: Redis, me: int, seq: int, t0: int) -> Redis:
        return Redis(0, ("C", seq, T_C, T_C))

    def end(self, redis: Redis, seq: int) -> Redis:
        return Redis() if redis.lease and redis.lease[1] == seq else redis


def explore(protocol: Lease, triggers: int) -> tuple[int, set[str]]:
    """How many states there are, and which promises are broken in any of them."""
    start = World((Worker(),) * triggers)
    seen, stack, broken = {start}, [start], set()
    while stack:
        world = stack.pop()
        # Whoever came to the gate now.
        broken |= _false_refusal(world, protocol.gate(world.redis, ORPHAN)[1])
        if _stuck(protocol, world):
            broken.add("L1")
        for following in _successors(protocol, world):
            if (same := _canonical(following)) not in seen:
                seen.add(same)
                stack.append(same)
    return len(seen), broken


def _canonical(world: World) -> World:
    """Triggers are alike: which of them is where does not matter."""
    order = sorted(range(len(world.workers)), key=lambda i: world.workers[i])
    reservation = world.redis.active
    if reservation < 0:
        owner = -1 - reservation
        gone = reservation == ORPHAN or world.workers[owner] == OVER
        reservation = ORPHAN if gone else -1 - order.index(owner)
    return world._replace(
        workers=tuple(world.workers[i] for i in order),
        redis=world.redis._replace(active=reservation),
    )


def _stuck(protocol: Lease, world: World) -> bool:
    """Nothing is active, everything has ended or crashed, T_c has passed: yet a trigger is refused."""
    if world.active or any(worker.step != "after" or worker.saw for worker in world.workers):
        return False
    for _ in range(T_C):
        world = _tick(world)
    return protocol.gate(world.redis, ORPHAN)[1] != 0


def _tick(world: World) -> World:
    redis = world.redis
    if redis.lease:
        kind, seq, refuses, life = redis.lease
        left = (kind, seq, max(refuses - 1, 0), life - 1)
        redis = redis._replace(lease=left if life > 1 else None)
    ended = tuple(when if when > 0 else max(when - 1, LONG_AGO) for when in world.ended)
    return world._replace(
        redis=redis,
        ended=ended,
        # A refusal because of one that ended long ago breaks S2 in any case.
        acknowledged=frozenset(seq for seq in world.acknowledged if ended[seq - 1] != LONG_AGO),
        workers=tuple(
            worker._replace(t0=max(worker.t0 - 1, -T_C))
            if worker.step == "postgres" or worker.saw
            else worker
            for worker in world.workers
        ),
    )


def _successors(protocol: Lease, world: World) -> Iterator[World]:
    """What may happen next."""
    yield _tick(world)
    if world.redis.active < 0:  # a reservation has a short life
        yield world._replace(redis=world.redis._replace(active=0))
    if not world.flushed:
        yield world._replace(redis=Redis(), flushed=True)
    for i, worker in enumerate(world.workers):
        match worker.step:
            case "gate":
                yield _gate(protocol, world, i)
            case "postgres":
                yield _put(world, i, OVER)  # a crash
                yield _postgres(world, i)
                yield _gate(protocol, world, i)  # it stood in line, and asks again
            case "after":
                yield from _after(protocol, world, i)


def _put(world: World, i: int, worker: Worker) -> World:
    if not worker.saw and worker.end == "over":
        worker = OVER
    return world._replace(workers=(*world.workers[:i], worker, *world.workers[i + 1 :]))


def _gate(protocol: Lease, world: World, i: int) -> World:
    redis, refused_by = protocol.gate(world.redis, -1 - i)
    passed = OVER if refused_by else Worker("postgres", t0=0)
    return _put(world._replace(redis=redis), i, passed)


def _postgres(world: World, i: int) -> World:
    worker = world.workers[i]
    if world.active:
        return _put(world, i, worker._replace(step="after", saw=world.active, end="over"))
    seq = len(world.ended) + 1
    started = worker._replace(step="after", saw=seq, started=seq)
    return _put(world._replace(active=seq, ended=(*world.ended, 1)), i, started)


def _after(protocol: Lease, world: World, i: int) -> Iterator[World]:
    worker = world.workers[i]
    if worker.saw:
        redis = protocol.fill(world.redis, -1 - i, worker.saw, worker.t0)
        filled = worker._replace(saw=0, t0=0)
        yield _put(world._replace(redis=redis), i, filled)
        yield _put(world, i, filled)  # a crash before the fill
    if worker.end == "" and world.active == worker.started:
        ended = (*world.ended[: worker.started - 1], 0, *world.ended[worker.started :])
        committed = world._replace(active=0, ended=ended)
        yield _put(committed, i, worker._replace(end="committed"))
    if worker.end == "committed":
        over = worker._replace(end="over")
        yield _put(world, i, over)  # a crash after the commit
        redis = protocol.end(world.redis, worker.started)
        acknowledged = world.acknowledged | {worker.started}
        yield _put(world._replace(redis=redis, acknowledged=acknowledged), i, over)


def _false_refusal(world: World, refused_by: int) -> set[str]:
    """The promise that a refusal because of this seq breaks; none if it is true, or if 0 refused."""
    if not refused_by:
        return set()
    if refused_by < 0 or world.ended[refused_by - 1] == LONG_AGO:
        return {"S2"}  # a reservation was never active; this one not within T_c
    if refused_by in world.acknowledged and not world.flushed:
        return {"S3"}
    return set()
