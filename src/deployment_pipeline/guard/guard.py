"""The Redis side of exclusivity: it saves Postgres work, and can do no harm.

Two keys per pipeline (the braces make them share a cluster slot):

    dp:active:{pipeline}:I   the id of the active deployment, set with NX. Alone it refuses nobody.
    dp:lease:{pipeline}:I    C:seq:id:until:...  Postgres confirmed that this deployment is active; it refuses
                                                 until that time, or
                             T:seq               this deployment, or a later one, has ended (a tombstone).

I is the installation's id, so that several installations can share a Redis. (It is not enough to have it in
the value: another installation's write would replace our tombstone.)

A trigger first passes the *gate*. Only a C lease that has not expired and whose id is also in dp:active
refuses it there. Otherwise it goes on to Postgres, which decides, and what Postgres said is *filled* in. The
*end* of a deployment leaves a tombstone after its commit and before its caller gets the answer.

Why a refusal is true: a lease refuses until t0 + T_c on Redis's clock, and t0 was read (by the gate) before
the Postgres statement behind the lease began. So a refusal at time t proves that the deployment was active at
some instant after t - T_c, however long a process slept or a packet was late.

Why a late fill cannot bring a deployment back: either its time has passed, or the key still says that
deployments up to its seq have ended. It says so for T_c after the last end: a fill keeps what is left of a
tombstone's life, and a C lease implies that everything before its seq has ended. (This is not obvious; a
model of the protocol in the tests tries every interleaving.)

Why nothing gets stuck: dp:active alone refuses nobody, and no lease refuses for longer than T_c. A key that
was left by a crash, forged, or of the wrong type costs one Postgres statement and is overwritten.

Why losing Redis is harmless: every step gives up after BUDGET_SECONDS and is never repeated (a SET NX whose
reply was late would read as somebody else's if it were sent again). After a few failures the breaker opens,
and nothing waits for Redis until a probe succeeds.
"""

from uuid import UUID

from deployment_pipeline import call
from deployment_pipeline.guard.lease import Lease, Passage
from deployment_pipeline.guard.redis import Script, Scripts
from deployment_pipeline.model import Deployment

# dp:active is only a hint; it expires so that garbage does not stay. A reservation lasts as long as a call
# may.
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
        """Take back the reservation of a trigger that passed the gate and started nothing."""
        await self._redis.run(_RELEASE, pipeline, str(id))
