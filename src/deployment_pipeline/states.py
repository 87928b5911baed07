"""The law: which status a deployment may have, what may happen to it, and where that leads.

A deployment is IN_PROGRESS while it holds its pipeline's one slot. PENDING ones wait for the slot; the
other three statuses are final, and nothing leaves them. Everything that `TRANSITIONS` does not list is
refused.

This table is the only copy that people edit. The CHECK on `dp_events` makes Postgres refuse any other
transition, and a test compares the two over the whole product of statuses and events; the proto's enum and
the chart in docs/states.md are compared with it too.
"""

from enum import StrEnum


class Status(StrEnum):
    PENDING = "PENDING"
    IN_PROGRESS = "IN_PROGRESS"
    COMPLETED = "COMPLETED"
    ROLLED_BACK = "ROLLED_BACK"
    CANCELLED = "CANCELLED"


class Event(StrEnum):
    """What happens to a deployment; the `type` of its rows in the event log."""

    TRIGGER = "TRIGGER"  # asked for, and the slot was free
    ADVANCE = "ADVANCE"  # to the next stage
    COMPLETE = "COMPLETE"  # advanced from the last stage
    ROLLBACK = "ROLLBACK"
    CANCEL = "CANCEL"


TRANSITIONS: dict[tuple[Status | None, Event], Status] = {
    (None, Event.TRIGGER): Status.IN_PROGRESS,
    (Status.PENDING, Event.CANCEL): Status.CANCELLED,
    (Status.IN_PROGRESS, Event.ADVANCE): Status.IN_PROGRESS,
    (Status.IN_PROGRESS, Event.COMPLETE): Status.COMPLETED,
    (Status.IN_PROGRESS, Event.ROLLBACK): Status.ROLLED_BACK,
    (Status.IN_PROGRESS, Event.CANCEL): Status.CANCELLED,
}

FINAL = frozenset(Status) - {start for start, _ in TRANSITIONS}


def chart() -> str:
    """The law as a Markdown page with a Mermaid chart: what docs/states.md holds."""
    arrows = [
        f"    {start or '[*]'} --> {end}: {event.lower()}" for (start, event), end in TRANSITIONS.items()
    ]
    arrows += [f"    {status} --> [*]" for status in Status if status in FINAL]
    rows = [f"| {start or '–'} | {event} | {end} |" for (start, event), end in TRANSITIONS.items()]
    return "\n".join(
        [
            "# The law of states",
            "",
            "Written by `make docs` from `states.py`; everything not listed is refused.",
            "",
            "```mermaid",
            "stateDiagram-v2",
            *arrows,
            "```",
            "",
            "| from | event | to |",
            "|---|---|---|",
            *rows,
        ]
    )


if __name__ == "__main__":
    print(chart())
