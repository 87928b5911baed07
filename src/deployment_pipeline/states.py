"""The law: which status a deployment may have, what may happen to it, and where that leads.

A deployment is IN_PROGRESS while it holds its pipeline's one slot. PENDING ones wait for the slot, in the
order of their triggers; whatever frees the slot (COMPLETE, ROLLBACK, CANCEL) promotes the oldest in the
same commit, unless the pipeline is locked or a rollback puts another in its place. The other three statuses
are final, and nothing leaves them. Everything that `TRANSITIONS` does not list is refused.

This table is the only copy that people edit. The CHECK on `dp_events` makes Postgres refuse any other
transition, and a test compares the two over the whole product of statuses and events; the proto's enum and
the chart in docs/states.md are compared with it too.
"""

from enum import StrEnum


class Known(StrEnum):
    """An enum whose values are stored. What a later release stored, and this one does not know, is read as
    UNSPECIFIED."""

    @classmethod
    def _missing_(cls, value: object) -> "Known":
        return cls["UNSPECIFIED"]


class Status(Known):
    UNSPECIFIED = "UNSPECIFIED"
    PENDING = "PENDING"
    IN_PROGRESS = "IN_PROGRESS"
    COMPLETED = "COMPLETED"
    ROLLED_BACK = "ROLLED_BACK"
    CANCELLED = "CANCELLED"


class EventType(Known):
    """What happens to a pipeline or a deployment; the `type` of its rows in the event log."""

    UNSPECIFIED = "UNSPECIFIED"
    # To a pipeline.
    CREATE = "CREATE"
    UPDATE = "UPDATE"
    LOCK = "LOCK"
    UNLOCK = "UNLOCK"
    # To a deployment.
    TRIGGER = "TRIGGER"  # asked for, and the slot was free; or put in the place of one rolled back
    QUEUE = "QUEUE"  # asked for, and the slot was taken
    PROMOTE = "PROMOTE"  # the slot was freed, and it was the oldest in line
    SUPERSEDE = "SUPERSEDE"  # a newer one took its place in line
    ADVANCE = "ADVANCE"  # to the next stage
    COMPLETE = "COMPLETE"  # advanced from the last stage
    ROLLBACK = "ROLLBACK"
    CANCEL = "CANCEL"


TRANSITIONS: dict[tuple[Status | None, EventType], Status] = {
    (None, EventType.TRIGGER): Status.IN_PROGRESS,
    (None, EventType.QUEUE): Status.PENDING,
    (Status.PENDING, EventType.PROMOTE): Status.IN_PROGRESS,
    (Status.PENDING, EventType.SUPERSEDE): Status.CANCELLED,
    (Status.PENDING, EventType.CANCEL): Status.CANCELLED,
    (Status.IN_PROGRESS, EventType.ADVANCE): Status.IN_PROGRESS,
    (Status.IN_PROGRESS, EventType.COMPLETE): Status.COMPLETED,
    (Status.IN_PROGRESS, EventType.ROLLBACK): Status.ROLLED_BACK,
    (Status.IN_PROGRESS, EventType.CANCEL): Status.CANCELLED,
}

# Those that are stored.
STATUSES = tuple(status for status in Status if status is not Status.UNSPECIFIED)
FINAL = frozenset(TRANSITIONS.values()) - {start for start, _ in TRANSITIONS}
PIPELINE_EVENTS = frozenset({EventType.CREATE, EventType.UPDATE, EventType.LOCK, EventType.UNLOCK})


def chart() -> str:
    """The law as a Markdown page with a Mermaid chart: what docs/states.md holds."""
    arrows = [
        f"    {start or '[*]'} --> {end}: {event.lower()}" for (start, event), end in TRANSITIONS.items()
    ]
    arrows += [f"    {status} --> [*]" for status in STATUSES if status in FINAL]
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
