"""The Redis side of exclusivity: it saves Postgres work, and can do no harm.

Two keys per pipeline (the braces make them share a cluster slot):

    dp:active:{pipeline}:I   the id of the active deployment, set with NX. Alone it refuses nobody.
    dp:lease:{pipeline}:I    C:seq:id:until:...  Postgres confirmed that this deployment is active; it refuses
                                                 until that time, or
                             T:seq               this deployment, or one after it, is over (a tombstone).

I is the installation's id, so that several may share a Redis. (In the value it would not do: another
installation's write would take the place of our tombstone.)

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

from uuid import UUID

from deployment_pipeline import call
from deployment_pipeline.guard.lease import Lease, Passage
from deployment_pipeline.guard.redis import Script, Scripts
from deployment_pipeline.model import Deployment

# dp:active is only a hint; its life just keeps garbage from staying. A reservation is one for a call.
ACTIVE_TTL_MS = 24 * 60 * 60 * 1000
RESERVED_TTL_MS = round(call.LONGEST_CALL_SECONDS * 1000)

_GATE, _FILL, _END, _RELEASE = map(Script, ("gate", "fill", "end", "release"))


class Guard:
    """`close` ends its connections."""

    def __init__(self, redis_url: str, installation: str, lease_ms: int, max_batch: int) -> None:
        self._redis = Scripts(redis_url, installation, max_batch)
        self._lease_ms = lease_ms

    async def open(self) -> None:
        await self._redis.greet()

    async def close(self) -> None:
        await self._redis.close()

    async def gate(self, pipeline: str, id: UUID) -> Passage:
        """Before a trigger: is it known to be hopeless? If not, reserve the pipeline for this id."""
        answer: bytes | None = await self._redis.run(
            _GATE, pipeline, str(id), self._lease_ms, RESERVED_TTL_MS
        )
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
        await self._redis.run(
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
        await self._redis.run(
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
        await self._redis.run(_RELEASE, pipeline, str(id))
