"""Is there an order of the calls that explains every answer? (Wing and Gong's search, with memory.)

Each call took effect at one instant between its start and its end. A call whose outcome is unknown may have
taken effect at any time after its start, or not at all; the tables say which. Pipelines are independent, so
each is searched alone. The event log numbers the changes in the order of their commits: that order, and no
other, must explain the answers, which keeps the search short however many outcomes are unknown.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf

from support.contract_model import Op, Response, State, apply

MAX_STEPS = 2_000_000


@dataclass(frozen=True)
class Call:
    """start and end on one clock; no response: it took effect, and its answer was lost."""

    op: Op
    start: float
    end: float
    response: Response | None
    number: int | None = None  # of the event that it, or the call that it repeats, wrote


class NotLinearizable(AssertionError):
    pass


def check(calls: Sequence[Call]) -> State:
    """The state that the calls led to. Raises NotLinearizable with the longest explanation found."""
    calls = sorted(calls, key=lambda call: call.start)
    ends = [call.end if call.response is not None else inf for call in calls]
    everything = (1 << len(calls)) - 1
    seen: set[tuple[int, State]] = set()
    stack: list[tuple[int, State]] = [(0, State())]
    longest, steps = 0, 0
    while stack:
        done, state = stack.pop()
        if done == everything:
            return state
        steps += 1
        if steps > MAX_STEPS:
            raise NotLinearizable("the search was given up: too many overlapping calls")
        if done.bit_count() > longest.bit_count():
            longest = done
        for reached in _next(calls, ends, done, state):
            if reached not in seen:
                seen.add(reached)
                stack.append(reached)
    rest = [call for i, call in enumerate(calls) if not longest >> i & 1]
    raise NotLinearizable(
        f"{len(rest)} of {len(calls)} calls cannot be explained, the first of them: {rest[:4]}"
    )


def _next(
    calls: Sequence[Call], ends: Sequence[float], done: int, state: State
) -> Iterator[tuple[int, State]]:
    """Each call that may have been the next one, and whose answer fits."""
    # It must have started before any other that is not done had ended.
    first_end = min(end for i, end in enumerate(ends) if not done >> i & 1)
    written = {call.number for i, call in enumerate(calls) if done >> i & 1}
    numbers = {call.number for call in calls if call.number is not None} - written
    next_number = min(numbers, default=None)
    changes: list[tuple[int, State]] = []
    for i, call in enumerate(calls):
        if done >> i & 1:
            continue
        if call.start > first_end:
            break
        if call.number in numbers and call.number != next_number:
            continue
        after, response = apply(state, call.op)
        # Without an answer, the tables say that it took effect.
        if response == call.response or (call.response is None and response[0] == "OK"):
            if after == state and call.number not in numbers:
                # It changed nothing and fits here: later it would fit no better.
                yield done | 1 << i, state
                return
            changes.append((done | 1 << i, after))
    yield from changes
