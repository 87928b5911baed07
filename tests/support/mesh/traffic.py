"""Calls that go one way to the replicas, and what became of each."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field

import grpc
import psycopg

from support.clients import Answer, Client, Refused, TypedClient
from support.mesh.changes import HARM, REASON, UNLOCK, Change, Verdict, is_final, judge, lock_next
from support.mesh.losses import Losses, nothing
from support.mesh.routes import Route
from support.steps import outcome

CALLERS = 4
# So many times a caller sends a call that has a token, until the service answers it.
ATTEMPTS = 10


@dataclass
class Tally:
    lost: int = 0
    verdicts: Counter[Verdict] = field(default_factory=Counter)

    @property
    def calls(self) -> int:
        return self.verdicts.total()


@dataclass
class Traffic:
    """direct: a client of a replica that nothing happens to."""

    route: Route
    address: str
    losses: Losses
    direct: Client
    sql: psycopg.Connection
    new_name: Callable[[], str]

    async def send(self, change: Change, calls: int) -> Tally:
        """That many calls. A caller makes one after the other, each once, or if it has a token until it is
        answered."""
        before = self.losses.count
        left = iter(range(calls))
        results: dict[str, Answer | Refused] = {}
        under_way: set[str] = set()

        async def somebody_locks() -> None:
            await asyncio.gather(*(lock_next(self.direct, pipeline, change.rival) for pipeline in under_way))

        async def caller() -> None:
            async with self._client() as client:
                for _ in left:
                    name = self.new_name()
                    fields = await change.prepare(self.direct, name)
                    under_way.add(name)
                    for _ in range(ATTEMPTS if change.carries else 1):
                        results[name] = await outcome(client.call(change.method, reason=REASON, **fields))
                        if is_final(results[name]):
                            break
                    under_way.discard(name)

        if change.kind == UNLOCK.kind:
            self.losses.before_each = somebody_locks
        await asyncio.gather(*(caller() for _ in range(CALLERS)))
        self.losses.before_each = nothing
        done = self._carried_out(list(results))
        verdicts = Counter(judge(change, result, done[name]) for name, result in results.items())
        return Tally(self.losses.count - before, verdicts)

    @contextlib.asynccontextmanager
    async def _client(self) -> AsyncIterator[Client]:
        """With a connection of its own."""
        options = [("grpc.use_local_subchannel_pool", 1), *self.route.options]
        async with grpc.aio.insecure_channel(self.address, options=options) as channel:
            yield TypedClient(channel)

    def _carried_out(self, pipelines: list[str]) -> Counter[str]:
        """How many times each pipeline's call was."""
        rows = self.sql.execute(
            "SELECT pipeline_name, count(*) FROM dp_events WHERE pipeline_name = ANY(%s) AND reason = %s"
            " GROUP BY pipeline_name",
            [pipelines, REASON],
        ).fetchall()
        return Counter(dict(rows))


def broken_promises(route: Route, change: Change, tally: Tally) -> Iterator[str]:
    """What is not as it must be."""
    what = f"{change.name}: {dict(tally.verdicts)}, {tally.lost} answers lost"
    if not tally.lost:
        yield f"no answer got lost: {what}"
    if route.protects(change) and tally.verdicts.keys() & HARM:
        yield f"harm was done: {what}"
    if change.carries == "request_id" and tally.verdicts.keys() - {Verdict.RIGHT}:
        yield f"a request_id makes everything right: {what}"
    if change.carries and tally.verdicts.keys() & {Verdict.BROKEN, Verdict.NOT_DONE}:
        yield f"a caller that may send it again is answered: {what}"
