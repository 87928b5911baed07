"""The operations: check the fields, pass the guard, let Postgres decide, tell the guard."""

from deployment_pipeline.engine.deployments import Deployments
from deployment_pipeline.engine.finishing import Finishing
from deployment_pipeline.engine.pipelines import Pipelines
from deployment_pipeline.engine.reads import Reads
from deployment_pipeline.engine.triggers import Triggers
from deployment_pipeline.guard.guard import Guard
from deployment_pipeline.postgres import Postgres

__all__ = ["Engine"]


class Engine:
    """All operations, on stores that somebody else opens and closes."""

    def __init__(self, postgres: Postgres, guard: Guard, page_token_key: bytes) -> None:
        self._finishing = Finishing()
        self.pipelines = Pipelines(postgres.changes, self._finishing)
        self.triggers = Triggers(postgres.changes, guard, self._finishing)
        self.deployments = Deployments(postgres.changes, guard, self._finishing)
        self.reads = Reads(postgres.reads, page_token_key)

    async def close(self) -> None:
        """Wait for the changes under way."""
        await self.triggers.close()
        await self._finishing.close()
