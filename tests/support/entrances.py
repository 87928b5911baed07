"""What stands before a call's handler, made without settings."""

from uuid import UUID

from deployment_pipeline.edge.entrance import Entrance
from deployment_pipeline.edge.grants import Access, Grant, Match, Role
from deployment_pipeline.edge.identity.identity import Identity
from deployment_pipeline.edge.rights import Rights
from deployment_pipeline.principal import ANONYMOUS


async def _no_pipeline(_: UUID) -> str | None:
    return None


def open_to_all() -> Entrance:
    """As without any authentication."""
    everything = Access(ANONYMOUS, [Grant(match=Match(), role=Role.ADMIN)])
    identity = Identity(None, None, None, None, takes_anonymous=True)
    return Entrance(identity, Rights(everything, None, _no_pipeline), None)
