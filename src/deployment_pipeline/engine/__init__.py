"""The operations: check the fields, pass the guard, let Postgres decide, tell the guard."""

from deployment_pipeline.engine.admission import Admission
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

    def __init__(
        self, postgres: Postgres, guard: Guard, page_token_key: bytes, *, requires_tokens: bool
    ) -> None:
        self._finishing = Finishing()
        admission = Admission(requires_tokens=requires_tokens)
        self.pipelines = Pipelines(admission, postgres.changes, self._finishing)
        self.triggers = Triggers(admission, postgres.changes, guard, self._finishing)
        self.deployments = Deployments(admission, postgres.changes, guard, self._finishing)
        self.reads = Reads(postgres.reads, page_token_key)

    async def close(self) -> None:
        """Wait for the changes under way."""
        await self.triggers.close()
        await self._finishing.close()
