"""Rows and the values that they stand for.

A shape is one type of row: it writes the columns that a statement asks for, and reads them off the row that
comes back. Both follow the fields of a class of `model`, so a column is named once.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, fields
from itertools import islice
from typing import Any, Generic, TypeVar
from uuid import UUID

from deployment_pipeline.ids import OWN_REQUEST_ID
from deployment_pipeline.model import CauseCode, Deployment, Lock, LoggedEvent, Pipeline, StageState, Waiting
from deployment_pipeline.states import EventType, Status

T = TypeVar("T")


class Shape(Generic[T]):
    """The fields of `kind`, each a column of its own name, with these exceptions:

    columns: what another expression says, with {row} for the row.
    read: what is to be made of a column's value, if it is not NULL.
    parts: the last ones, which are shapes themselves, of the same row or of one that `columns` is told.

    A field with a default is left out unless it is a part.
    """

    def __init__(
        self,
        kind: Callable[..., T],
        *,
        columns: Mapping[str, str] | None = None,
        read: Mapping[str, Callable[[Any], Any]] | None = None,
        parts: Mapping[str, "Shape[Any]"] | None = None,
    ) -> None:
        self._kind = kind
        self._parts = parts or {}
        names = [f.name for f in fields(kind) if f.default is MISSING and f.name not in self._parts]  # type: ignore[arg-type]
        self._columns = [(columns or {}).get(name, "{row}." + name) for name in names]
        self._read = [(names.index(name), reader) for name, reader in (read or {}).items()]

    def columns(self, row: str, **rows: str) -> str:
        """For a SELECT. row: the alias, or an expression in parentheses. rows: those of the parts."""
        own = [column.format(row=row) for column in self._columns]
        return ", ".join(own + [part.columns(rows.get(name, row)) for name, part in self._parts.items()])

    def read(self, values: Iterator[Any]) -> T | None:
        """Take this shape's columns off a row. None if the first of them is NULL."""
        own = list(islice(values, len(self._columns)))
        own += [part.read(values) for part in self._parts.values()]
        if own[0] is None:
            return None
        for place, reader in self._read:
            if own[place] is not None:
                own[place] = reader(own[place])
        return self._kind(*own)


class Column(Generic[T]):
    """One column of a row, as it comes."""

    def columns(self, row: str) -> str:
        return row

    def read(self, values: Iterator[Any]) -> T:
        value: T = next(values)
        return value


_DEPLOYMENT: dict[str, Callable[[Any], Any]] = {
    "stages": tuple,
    "stage_entered_at": tuple,
    "status": Status,
    "cause": CauseCode,
}

LOCK = Shape(
    Lock,
    columns={
        "no": "coalesce({row}.lock_no, 0)",
        "owner": "{row}.lock_owner",
        "reason": "{row}.lock_reason",
        "expires_at": "{row}.lock_expires_at",
        "stands": "dp_is_locked({row}, clock_timestamp())",
    },
)
PIPELINE = Shape(Pipeline, read={"stages": tuple}, parts={"lock": LOCK})
WAITING = Shape(Waiting)
DEPLOYMENT = Shape(Deployment, read=_DEPLOYMENT)
# A deployment that may be PENDING.
QUEUEABLE = Shape(Deployment, read=_DEPLOYMENT, parts={"waiting": WAITING})
STAGE_STATE = Shape(StageState)
EVENT = Shape(
    LoggedEvent,
    # The service's own request ids are nobody's business.
    columns={
        "request_id": "CASE WHEN NOT starts_with({row}.request_id, "
        f"'{OWN_REQUEST_ID}') THEN {{row}}.request_id END"
    },
    read={"type": EventType, "from_status": Status, "to_status": Status},
)
STARTED = Column[UUID | None]()
