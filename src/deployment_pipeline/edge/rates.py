"""How many calls a second somebody may send: a token bucket for each, as the one number that it takes."""

import time
from itertools import islice

MAX_KEYS = 10_000
ROUNDING_SECONDS = 1e-6


class Rates:
    """The generic cell rate algorithm: for each key, when its bucket will be full again.

    per_second: how fast it fills. burst: how much fits.
    """

    def __init__(self, per_second: float, burst: float) -> None:
        self._interval = 1 / per_second
        self._most = burst * self._interval
        self._full_at: dict[str, float] = {}

    def take(self, key: str) -> float:
        """Take one and return 0, or take none and return how long until there is one, in seconds."""
        now = time.monotonic()
        full_at = self._full_at.get(key, 0.0)
        wait = full_at - now + self._interval - self._most
        if wait > ROUNDING_SECONDS:
            return wait
        if not full_at and len(self._full_at) >= MAX_KEYS:
            self._forget(now)
        self._full_at[key] = max(full_at, now) + self._interval
        return 0.0

    def _forget(self, now: float) -> None:
        """Those that are full; if none is, the tenth that was taken from first."""
        full = [key for key, full_at in self._full_at.items() if full_at <= now]
        for key in full or list(islice(self._full_at, MAX_KEYS // 10)):
            del self._full_at[key]
