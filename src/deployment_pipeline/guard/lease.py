"""What Redis knows of an active deployment, and what the gate makes of it."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from uuid import UUID

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Lease:
    """What Redis knows of an active deployment: confirmed by Postgres within the last T_c."""

    seq: int
    id: UUID
    until_ms: int  # on Redis's clock
    since: datetime
    stage: str
    version: str

    def dump(self) -> str:
        since_us = (self.since - _EPOCH) // _MICROSECOND
        return f"C:{self.seq}:{self.id}:{self.until_ms}:{since_us}:{self.stage}:{self.version}"

    @classmethod
    @lru_cache(maxsize=1024)  # a lease refuses many
    def load(cls, text: bytes) -> "Lease | None":
        """None if it is not ours: somebody else wrote it."""
        try:
            _, seq, id, until_ms, since_us, stage, version = text.decode().split(":", 6)
            since = _EPOCH + int(since_us) * _MICROSECOND
            return cls(int(seq), UUID(id), int(until_ms), since, stage, version)
        except (ValueError, OverflowError):
            return None


@dataclass(frozen=True, slots=True)
class Passage:
    """What the gate said."""

    t0_ms: int | None  # Redis's time at the gate; None: Redis did not answer
    refused_by: Lease | None = None
