"""JWTs as credentials.

A token names its issuer. Only the keys of that issuer's set are tried, and only the algorithms that
DP_JWT_ISSUERS lists for it. Nothing in a token says where a key is: jku, x5u, jwk and x5c are not looked at.
A signature is verified once per token: that verification is cached, never what the token's owner may do.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from joserfc import jws
from joserfc.errors import JoseError

from deployment_pipeline import call
from deployment_pipeline.edge.identity.claims import Registry, Rules, Unverified
from deployment_pipeline.edge.identity.issuer import Issuer
from deployment_pipeline.edge.identity.keys import FETCH_SECONDS, KeyFile, KeySet, KeyUrl
from deployment_pipeline.edge.identity.proof import NotProven
from deployment_pipeline.edge.reloading import Reloading, Unreadable
from deployment_pipeline.principal import Principal
from deployment_pipeline.refusals import KeysUnavailable

MAX_VERIFIED = 10_000
# Of tokens that are remembered: what is kept of one takes up some times as much.
MAX_VERIFIED_BYTES = 8 * 1024 * 1024
# Calls that wait for keys at a time, a quarter of those that there may be: anybody can make up the id of a
# key, and an issuer may take seconds to answer.
MAX_WAITING = 1024


class _Trusted(NamedTuple):
    name: str
    rules: Rules
    registry: Registry
    source: KeyFile | KeyUrl


class _Verified(NamedTuple):
    principal: Principal
    source: KeyFile | KeyUrl
    keys: KeySet  # with one of which it was verified


class Jwts:
    def __init__(self, issuers: Sequence[Issuer], clock: Callable[[], float] = time.time) -> None:
        """Reads the key files, and fetches nothing yet: see `keep`. Raises Unreadable, which lists every file
        that cannot be used."""
        self._clock = clock
        self._urls = {url: KeyUrl(url) for issuer in issuers if (url := issuer.jwks_url)}
        self._files = _read({path for issuer in issuers if (path := issuer.jwks_file)})
        self._trusted = [self._trust(issuer) for issuer in issuers]
        # By the token, oldest first. (A digest as the key would cost every call as much as all the rest.)
        self._verified = OrderedDict[str, _Verified]()
        self._verified_bytes = 0
        self._waiting = 0  # calls, for keys

    @property
    def files(self) -> Sequence[Reloading[KeySet]]:
        """Those to look at again, for whoever keeps files."""
        return list(self._files.values())

    async def keep(self) -> None:
        """Fetch what is behind URLs, at once and then every few minutes, until cancelled; return at once if
        there are none. Never raises."""
        await asyncio.gather(*(source.keep() for source in self._urls.values()))

    def known(self, token: str) -> Principal | None:
        """Whom the token was verified to name, if that still holds. On the path of every call."""
        found = self._verified.get(token)
        if found is None:
            return None
        principal, source, keys = found
        return principal if source.value is keys and self._clock() < principal.expires_at else None

    async def principal(self, token: str) -> Principal:
        """Verify it. Raises NotProven, or KeysUnavailable if nobody can know now."""
        unverified = Unverified(token)
        trusted = self._trusted_for(unverified)
        principal = trusted.rules.principal(unverified.claims)
        keys = await self._keys_for(unverified.kid, trusted)
        _verify(unverified, trusted, keys)
        self._remember(token, _Verified(principal, trusted.source, keys))
        return principal

    def _trust(self, issuer: Issuer) -> _Trusted:
        source = self._files[issuer.jwks_file] if issuer.jwks_file else self._urls[issuer.jwks_url]
        return _Trusted(issuer.name, Rules(issuer, self._clock), Registry(issuer.algorithms), source)

    def _trusted_for(self, unverified: Unverified) -> _Trusted:
        """Of one issuer with several audiences, the first that the token names."""
        for trusted in self._trusted:
            if trusted.rules.are_for(unverified.claims):
                return trusted
        raise NotProven("no issuer in DP_JWT_ISSUERS has the token's iss and aud")

    async def _keys_for(self, kid: str | None, trusted: _Trusted) -> KeySet:
        """A set with that key. Looks for newer keys if need be: issuers may change keys without a word."""
        source = trusted.source
        if (keys := source.value) and (kid is None or keys.named(kid)):
            return keys
        if self._waiting >= MAX_WAITING:
            raise KeysUnavailable(trusted.name)
        self._waiting += 1
        try:
            is_fresh = await source.refresh(min(FETCH_SECONDS, call.patience()))
        finally:
            self._waiting -= 1
        if (keys := source.value) and (kid is None or keys.named(kid)):
            return keys
        if keys and is_fresh:
            raise NotProven(f"the issuer {trusted.name} has no key {kid!r:.100}")
        raise KeysUnavailable(trusted.name)

    def _remember(self, token: str, verified: _Verified) -> None:
        self._forget(token)
        self._verified[token] = verified
        self._verified_bytes += len(token)
        while len(self._verified) > MAX_VERIFIED or self._verified_bytes > MAX_VERIFIED_BYTES:
            self._forget(next(iter(self._verified)))

    def _forget(self, token: str) -> None:
        if self._verified.pop(token, None):
            self._verified_bytes -= len(token)


def _verify(unverified: Unverified, trusted: _Trusted, keys: KeySet) -> None:
    """Raises NotProven. joserfc checks that the algorithm is one of the issuer's, and that it fits the key:
    its kty and crv, and its alg, use and key_ops if it has them."""
    problem = "it has no kid, and the issuer has several keys"
    for key in keys.named(unverified.kid):
        try:
            if jws.validate_compact(unverified.signed, key, registry=trusted.registry):
                return
            problem = "the signature is wrong"
        except (JoseError, ValueError) as error:
            problem = f"{error!s:.200}"
    raise NotProven(f"the token is not proven to be of the issuer {trusted.name}: {problem}")


def _read(paths: set[Path]) -> dict[Path, KeyFile]:
    files, problems = {}, []
    for path in sorted(paths):
        try:
            files[path] = KeyFile(path)
        except Unreadable as error:
            problems.append(str(error))
    if problems:
        raise Unreadable("\n".join(problems))
    return files
