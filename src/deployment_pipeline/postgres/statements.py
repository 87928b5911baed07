"""A SQL statement that can also be asked for many at a time."""

import json
from collections.abc import Sequence
from typing import Any, TypeAlias

Row: TypeAlias = tuple[Any, ...]

# The outcome, in a batch, of a change whose pipeline somebody else is changing: it was not made.
MUST_WAIT = "MUST_WAIT"
NO_WAIT = -1


class Statement:
    """`one` is the statement as it is written, with a %s for each value. `many`, if the values' types are
    given, takes a `batch`; its rows begin with the place in the batch, from 0, of what they answer.

    waits: the last value says for how many milliseconds it may wait for its pipeline's row lock. In a batch
    it is NO_WAIT: not at all, answer MUST_WAIT. So no change waits behind another one's lock, and nothing
    waits while it holds locks.
    """

    def __init__(self, one: str, *types: str, waits: bool = False) -> None:
        self.one = one.encode()
        self.many = b""
        self.waits = waits
        if types:
            values = [f'q."{place}"' for place in range(len(types))]
            columns = ", ".join(f'"{place}" {type}' for place, type in enumerate(types))
            self.many = (
                f"SELECT q.n, r.* FROM json_to_recordset(%s::json) q (n integer, {columns})"
                f" CROSS JOIN LATERAL ({one.replace('%s', '{}').format(*values)}) r"
            ).encode()

    def answer(self, rows: list[Row]) -> list[Row] | None:
        """What a batch's rows say to one of its questions; None: nothing, it must wait."""
        return None if self.waits and rows[0][0] == MUST_WAIT else rows


def batch(questions: Sequence[Sequence[Any]]) -> str:
    """The value for `many`. JSON: it is made many times faster than Postgres's arrays."""
    return json.dumps(
        [{"n": n, **dict(enumerate(values))} for n, values in enumerate(questions)], default=_text
    )


def _text(value: object) -> str:
    return rf"\x{value.hex()}" if isinstance(value, bytes) else str(value)
