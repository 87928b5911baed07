"""Who calls, how often, and whether they may: what stands between a call's arrival and its handler."""

from collections.abc import Sequence
from typing import Any

from deployment_pipeline import call
from deployment_pipeline.edge.answers import Context
from deployment_pipeline.edge.grants import Access
from deployment_pipeline.edge.identity.identity import Identity, address, retry_ms
from deployment_pipeline.edge.rates import Rates
from deployment_pipeline.edge.rights import Rights
from deployment_pipeline.principal import is_id
from deployment_pipeline.refusals import InvalidFields, PermissionDenied, RateLimited, Violation

AUTHORIZATION = "authorization"
ON_BEHALF_OF = "x-dp-on-behalf-of"
# How the ids begin that only the service itself has.
OWN_ID = "system:"


class Entrance:
    def __init__(self, identity: Identity, rights: Rights, rate: Rates | None) -> None:
        """rate: None: anybody may send any number of calls."""
        self._identity = identity
        self._rights = rights
        self._rate = rate

    async def admit(self, method: str, request: Any, context: Context) -> None:
        """Say who calls (`call.caller`). Raises what keeps the call out: Unauthenticated, KeysUnavailable,
        RateLimited, PermissionDenied, DeploymentNotFound, InvalidFields."""
        authorizations: list[str] = []
        people: list[str] = []
        for key, value in context.invocation_metadata() or ():
            if key == AUTHORIZATION:
                authorizations.append(str(value))
            elif key == ON_BEHALF_OF:
                people.append(str(value))
        known = self._identity.known(authorizations)
        principal = known or await self._identity.principal(authorizations, context)
        access = self._rights.access(principal)
        call.identify(access.caller)
        if self._rate and (wait := self._rate.take(principal.id or address(context))):
            raise RateLimited(retry_ms(wait))
        if not self._rights.covers(method, access):
            await self._rights.check(method, request, access)
        if people:
            person = await self._person(people, method, request, access)
            call.identify(access.caller._replace(actor=person, via=principal.id))

    async def _person(self, people: Sequence[str], method: str, request: Any, access: Access) -> str:
        """On whose behalf the call is made."""
        if not await self._rights.may_impersonate(method, request, access):
            raise PermissionDenied(
                access.caller.principal.id, f"{method} on behalf of somebody", "impersonate", ""
            )
        [person, *others] = people
        if others or not is_id(person) or person.lower().startswith(OWN_ID):
            rule = f'must be sent once, and be an id of printable ASCII without a blank, not "{OWN_ID}..."'
            raise InvalidFields([Violation(ON_BEHALF_OF, rule)])
        if self._rights.denies(person):
            raise PermissionDenied(person, method, "", "")
        return person
