"""The keys that tokens are checked with: JWK Sets (RFC 7517), from files and https URLs."""

import asyncio
import contextlib
import json
import math
import random
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from joserfc.errors import JoseError
from joserfc.jwk import Key, import_key
from joserfc.util import base64_to_int

from deployment_pipeline.edge.identity import https
from deployment_pipeline.edge.reloading import Reloading, Unreadable, content

MAX_SET_BYTES = 64 * 1024
MAX_KEYS = 20
# RFC 7518 (3.3) demands 2048; a check takes four times as long with each doubling.
RSA_BITS = range(2048, 8192 + 1)
FETCH_SECONDS = 5.0
REFRESH_SECONDS = 300.0
# Replicas that started together do not ask together for ever.
JITTER = 0.1
# After an answer that was of no use. The issuer may be starting, too.
RETRY_SECONDS = 10.0
# How often a token with an unknown key id may make us ask: anybody can send one.
PAUSE_SECONDS = 30.0

# Public keys have none of these members.
_SECRET = {"d", "p", "q", "dp", "dq", "qi", "oth", "k"}

log = structlog.get_logger()


class BadKeys(Exception):
    """Something is no key set, or has no key that can be used."""


@dataclass(frozen=True, slots=True, eq=False)
class KeySet:
    """keys: public ones, at least one. A set never changes: what was verified with it holds while its source
    has this very object."""

    keys: Sequence[Key]

    def named(self, kid: str | None) -> Sequence[Key]:
        """The keys with that id, none or more. Without an id: the only key, or none if there are several."""
        if kid is None:
            return self.keys if len(self.keys) == 1 else ()
        return [key for key in self.keys if key.kid == kid]


def parse(text: bytes) -> KeySet:
    """Raises BadKeys. A key that cannot be used is left out, with a log line: issuers publish keys of new
    kinds beside the others (RFC 7517, 5)."""
    if len(text) > MAX_SET_BYTES:
        raise BadKeys(f"it is longer than {MAX_SET_BYTES} bytes")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise BadKeys("it is not JSON") from None
    entries = found.get("keys") if isinstance(found, dict) else None
    if not isinstance(entries, list):
        raise BadKeys("it has no list of keys")
    if len(entries) > MAX_KEYS:
        raise BadKeys(f"it has {len(entries)} keys, and {MAX_KEYS} are the most")
    keys = [key for entry in entries if (key := _usable(entry))]
    if not keys:
        raise BadKeys("it has no key that can be used")
    return KeySet(keys)


def _usable(entry: Any) -> Key | None:
    try:
        return _public(entry)
    except KeyError as error:
        problem = f"{error} is missing or unknown"
    except (BadKeys, JoseError, TypeError, ValueError) as error:
        problem = str(error)
    kid = entry.get("kid") if isinstance(entry, dict) else None
    log.warning("a key cannot be used", kid=kid, problem=problem)
    return None


def _public(entry: Any) -> Key:
    if not isinstance(entry, dict):
        raise BadKeys("it is no object")
    # Whoever can read the set could sign with it.
    if _SECRET & entry.keys():
        raise BadKeys("it is a private or symmetric key, which everybody can know by now: replace it")
    if entry.get("kty") == "RSA" and base64_to_int(entry["n"]).bit_length() not in RSA_BITS:
        raise BadKeys(f"an RSA key must have {RSA_BITS[0]} to {RSA_BITS[-1]} bits")
    return import_key(entry)


class _OnDemand:
    """Looks for new keys because a token names one that is not known: seldom, and once for all who wait."""

    def __init__(self, look: Callable[[], Coroutine[Any, Any, bool]]) -> None:
        self._look = look
        self._looked_at = -math.inf
        self._looking: asyncio.Task[bool] | None = None

    async def wait(self, seconds: float) -> bool:
        """Look, unless that was done in the last PAUSE_SECONDS; wait for the end of it, if there is time.
        Returns whether it has ended well."""
        now = time.monotonic()
        if self._looking is None or now - self._looked_at >= PAUSE_SECONDS:
            self._looked_at = now
            self._looking = asyncio.create_task(self._look())
        await asyncio.wait([self._looking], timeout=seconds)
        return self._looking.done() and not self._looking.cancelled() and self._looking.result()


class KeyFile(Reloading[KeySet]):
    """A key set from a file. Whoever keeps files looks at it again."""

    def __init__(self, path: Path) -> None:
        """Raises Unreadable."""
        super().__init__([path], lambda: _in_file(path))
        self._on_demand = _OnDemand(self._look_in_thread)

    async def refresh(self, seconds: float) -> bool:
        """See _OnDemand.wait."""
        return await self._on_demand.wait(seconds)

    async def _look_in_thread(self) -> bool:
        await asyncio.to_thread(self.look)
        return True


def _in_file(path: Path) -> KeySet:
    try:
        return parse(content(path))
    except OSError as error:
        raise Unreadable(f"{path} cannot be read: {error.strerror}") from None
    except BadKeys as error:
        raise Unreadable(f"{path} is no usable JWK Set: {error}") from None


class KeyUrl:
    """A key set behind an https URL. value: the last good one; None until there is one."""

    def __init__(self, url: str) -> None:
        self.value: KeySet | None = None
        self._url = url
        self._shown = url.partition("?")[0]  # a query may hold a secret
        self._text = b""
        # One at a time: an older answer must not come after a newer one.
        self._fetching = asyncio.Lock()
        self._was_tried = asyncio.Event()
        self._on_demand = _OnDemand(self.fetch)

    async def keep(self) -> None:
        """Fetch it now, and then every REFRESH_SECONDS, until cancelled."""
        while True:
            pause = REFRESH_SECONDS if await self.fetch() else RETRY_SECONDS
            await asyncio.sleep(pause * random.uniform(1 - JITTER, 1 + JITTER))  # noqa: S311  # no secret

    async def refresh(self, seconds: float) -> bool:
        """Wait for the first set if there is none yet. Else see _OnDemand.wait: what the start asks for must
        not use up what a change of keys may need next."""
        if self.value:
            return await self._on_demand.wait(seconds)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._was_tried.wait(), seconds)
        return self.value is not None

    async def fetch(self) -> bool:
        """Returns whether the set is now what the issuer publishes. Never raises."""
        try:
            async with self._fetching, asyncio.timeout(FETCH_SECONDS):
                self._take(await https.get(self._url, MAX_SET_BYTES))
        # Whatever it is: who keeps keys must go on, or an old set would be used for ever.
        except Exception as error:
            problem = str(error) or type(error).__name__
            held = len(self.value.keys) if self.value else 0
            log.warning("keys could not be fetched", url=self._shown, problem=problem, keys_that_hold=held)
            return False
        finally:
            self._was_tried.set()
        return True

    def _take(self, text: bytes) -> None:
        """The same text keeps the set, and with it all that was verified with it. Raises BadKeys."""
        if text != self._text:
            self.value = parse(text)
            self._text = text
            log.info("keys were fetched", url=self._shown, kids=[key.kid for key in self.value.keys])
