"""The operations: check the fields, pass the guard, let Postgres judge, tell the guard."""

from deployment_pipeline.engine.deployments import Deployments
from deployment_pipeline.engine.finishing import Changes
from deployment_pipeline.engine.pipelines import Pipelines
from deployment_pipeline.engine.reads import Records
from deployment_pipeline.engine.triggers import Triggers
from deployment_pipeline.guard.guard import Guard
from deployment_pipeline.postgres.store import Store

__all__ = ["Engine"]


class Engine:
    """All operations, on a store and a guard that somebody else opens and closes."""

    def __init__(self, store: Store, guard: Guard, page_token_key: bytes) -> None:
        self._changes = Changes()
        self.pipelines = Pipelines(store, self._changes)
        self.triggers = Triggers(store, guard, self._changes)
        self.deployments = Deployments(store, guard, self._changes)
        self.records = Records(store, page_token_key)

    async def close(self) -> None:
        """Wait for the changes under way."""
        await self.triggers.close()
        await self._changes.close()
