"""What GetServerInfo tells: who the caller is taken for and may do, and what this server is and takes."""

from collections.abc import Mapping, Sequence
from datetime import timedelta

from deployment_pipeline.call import LONGEST_CALL_SECONDS, Caller
from deployment_pipeline.edge.grants import Grant, Role
from deployment_pipeline.edge.rights import Rights
from deployment_pipeline.fields import MAX_PAGE, MAX_PAGE_BYTES
from deployment_pipeline.release import VERSION
from dp.v1 import deployment_pipeline_pb2 as pb

MAX_MESSAGE_BYTES = 1024 * 1024


class ServerInfo:
    def __init__(
        self, rights: Rights, *, max_streams: int, calls_per_second: float, features: Sequence[str]
    ) -> None:
        """max_streams: how many calls a connection may have under way. calls_per_second: 0: any number."""
        self._rights = rights
        self._limits = pb.Limits(
            request_bytes=MAX_MESSAGE_BYTES,
            page_items=MAX_PAGE,
            page_bytes=MAX_PAGE_BYTES,
            calls_per_connection=max_streams,
            calls_per_second=calls_per_second,
        )
        self._limits.call.FromTimedelta(timedelta(seconds=LONGEST_CALL_SECONDS))
        self._features = features

    def answer(self, caller: Caller) -> pb.GetServerInfoResponse:
        principal = caller.principal
        return pb.GetServerInfoResponse(
            version=VERSION,
            principal=caller.actor,
            via=caller.via,
            display_name=principal.display_name,
            groups=principal.groups,
            grants=map(_grant, self._rights.access(principal).grants),
            limits=self._limits,
            features=self._features,
        )


_ROLES: Mapping[Role, pb.Grant.Role.ValueType] = {
    Role.VIEWER: pb.Grant.VIEWER,
    Role.DEPLOYER: pb.Grant.DEPLOYER,
    Role.OPERATOR: pb.Grant.OPERATOR,
    Role.ADMIN: pb.Grant.ADMIN,
}


def _grant(grant: Grant) -> pb.Grant:
    return pb.Grant(role=_ROLES[grant.role], pipelines=grant.pipelines, impersonate=grant.impersonate)
