"""Who may do what: what each method needs, and the step that asks for it.

Rights are judged before everything that could show something. By name, the answer comes from the name and
the grants alone, whether there is such a pipeline or not. By id, a deployment that the caller may not see is
answered exactly as one that does not exist.
"""

from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple
from uuid import UUID

from deployment_pipeline.edge.grants import Access, Grants, Role
from deployment_pipeline.edge.reloading import Reloading
from deployment_pipeline.fields import UUID_TEXT
from deployment_pipeline.principal import Principal, issuer_of
from deployment_pipeline.refusals import DeploymentNotFound, PermissionDenied

# Principals whose access is remembered, of all that have called lately.
MAX_REMEMBERED = 10_000
DEPLOYMENT_ID = "deployment_id"


class Needs(NamedTuple):
    """A role, on the pipeline that one of these fields of the request names, or whose deployment it names."""

    role: Role
    fields: tuple[str, ...] = ()


# A method that is not here may be called by nobody.
METHODS: Mapping[str, Needs] = MappingProxyType(
    {
        "GetServerInfo": Needs(Role.NONE),
        "GetPipeline": Needs(Role.VIEWER, ("name",)),
        "ListPipelines": Needs(Role.VIEWER),  # shows what the caller may see
        "GetPipelineState": Needs(Role.VIEWER, ("name",)),
        "GetDeploymentStatus": Needs(Role.VIEWER, (DEPLOYMENT_ID,)),
        "GetHistory": Needs(Role.VIEWER, ("pipeline_name",)),
        "ListEvents": Needs(Role.VIEWER, ("pipeline_name", DEPLOYMENT_ID)),
        "TriggerDeployment": Needs(Role.DEPLOYER, ("pipeline_name",)),
        "AdvanceStage": Needs(Role.DEPLOYER, (DEPLOYMENT_ID,)),
        "CancelDeployment": Needs(Role.DEPLOYER, (DEPLOYMENT_ID,)),
        "Rollback": Needs(Role.DEPLOYER, (DEPLOYMENT_ID,)),
        "LockPipeline": Needs(Role.OPERATOR, ("name",)),
        "UnlockPipeline": Needs(Role.OPERATOR, ("name",)),
        "CreatePipeline": Needs(Role.ADMIN, ("name",)),
        "UpdatePipeline": Needs(Role.ADMIN, ("name",)),
    }
)


class Rights:
    def __init__(
        self,
        anonymous: Access,
        grants: Reloading[Grants] | None,
        pipeline_of: Callable[[UUID], Awaitable[str | None]],
    ) -> None:
        """anonymous: what those may do who have no credential. grants: None if nobody can have one.
        pipeline_of: the name of a deployment's pipeline; None if there is no such deployment."""
        self._anonymous = anonymous
        self._grants = grants
        self._pipeline_of = pipeline_of
        self._of: Grants | None = None
        self._accesses: dict[Principal, Access] = {}

    def access(self, principal: Principal) -> Access:
        if not self._grants or not principal.id:
            return self._anonymous
        if self._of is not self._grants.value or len(self._accesses) > MAX_REMEMBERED:
            self._of = self._grants.value
            self._accesses.clear()
        access = self._accesses.get(principal)
        if access is None:
            access = self._accesses[principal] = self._of.access(principal)
        return access

    def denies(self, person: str) -> bool:
        """Whether a deny is for somebody on whose behalf others call. Their groups and claims are unknown."""
        if self._grants is None:
            return False
        return self._grants.value.denies(Principal(person, issuer_of(person)))

    def covers(self, method: str, access: Access) -> bool:
        """Whether it needs no look at the request."""
        needs = METHODS.get(method)
        return needs is not None and access.everywhere >= needs.role and not access.is_denied

    async def check(self, method: str, request: Any, access: Access) -> None:
        """What `covers` does not. Raises PermissionDenied, DeploymentNotFound."""
        id = access.caller.principal.id
        needs = METHODS.get(method)
        if access.is_denied or needs is None:
            raise PermissionDenied(id, method, "", "")
        name, deployment = _named(needs, request)
        if deployment:
            # Whoever has no role on any pipeline sees none: asking Postgres would only be at others' cost.
            name = (await self._pipeline_of(deployment) if access.anywhere else None) or ""
            if not access.role(name) or not name:
                raise DeploymentNotFound(deployment)
        # Without a name it is a list, or a request that is refused for what it lacks.
        if (access.role(name) if name else access.anywhere) < needs.role:
            raise PermissionDenied(id, method, str(needs.role), name)

    async def may_impersonate(self, method: str, request: Any, access: Access) -> bool:
        """Of a call that passed `check`."""
        name, deployment = _named(METHODS[method], request)
        if deployment:
            name = await self._pipeline_of(deployment) or ""
        return access.impersonates(name)


def _named(needs: Needs, request: Any) -> tuple[str, UUID | None]:
    """The pipeline that a request names, or the deployment; empty and None: neither."""
    field = next((field for field in needs.fields if getattr(request, field, "")), "")
    value = getattr(request, field, "")
    if field != DEPLOYMENT_ID:
        return value, None
    return "", UUID(value) if UUID_TEXT.fullmatch(value) else None
