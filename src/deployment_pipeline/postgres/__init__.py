"""The only room that knows psycopg, the tables and their SQL."""

from deployment_pipeline.postgres.changes import Changes
from deployment_pipeline.postgres.connections import Connections
from deployment_pipeline.postgres.reads import Reads
from deployment_pipeline.postgres.session import CannotUse
from deployment_pipeline.postgres.statements import Statements

__all__ = ["CannotUse", "Postgres"]


class Postgres:
    """What one process asks of Postgres. Whoever opens it closes it."""

    def __init__(self, url: str, pool_size: int, max_batch: int, *, prepares: bool = True) -> None:
        self._connections = Connections(url, pool_size, prepares=prepares)
        statements = Statements(self._connections, max_batch)
        self.reads = Reads(statements)
        self.changes = Changes(statements, self.reads)

    async def open(self) -> None:
        """Connect. Raises CannotUse."""
        await self._connections.open()

    async def close(self) -> None:
        await self._connections.close()

    async def probe(self) -> None:
        """Raises StoreUnavailable if Postgres does not answer or takes no changes, Overloaded if all
        connections are busy."""
        await self._connections.probe()
