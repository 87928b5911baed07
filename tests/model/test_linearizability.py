"""The checker itself: it accepts what is right, and notices what is not."""

import pytest

from support.contract_model import Op
from support.linearizability import Call, NotLinearizable, check

BUSY = ("PIPELINE_BUSY", "a")
A, B = Op("TriggerDeployment", "a", "ra"), Op("TriggerDeployment", "b", "rb")
STARTED = ("OK", "IN_PROGRESS", 0)


def test_overlapping_calls_may_take_effect_in_either_order() -> None:
    state = check([Call(B, 0, 10, BUSY), Call(A, 1, 9, STARTED)])
    assert [d.id for d in state.deployments] == ["a"]


def test_calls_that_do_not_overlap_may_not() -> None:
    with pytest.raises(NotLinearizable):
        check([Call(B, 0, 1, BUSY), Call(A, 2, 3, STARTED)])


def test_two_winners_are_noticed() -> None:
    with pytest.raises(NotLinearizable):
        check([Call(A, 0, 10, STARTED), Call(B, 0, 10, STARTED)])


def test_a_repeat_that_did_something_again_is_noticed() -> None:
    advance = Op("AdvanceStage", "a", "r")
    once, twice = ("OK", "IN_PROGRESS", 1), ("OK", "COMPLETED", 1)
    check([Call(A, 0, 1, STARTED), Call(advance, 2, 3, once), Call(advance, 4, 5, once)])
    with pytest.raises(NotLinearizable):
        check([Call(A, 0, 1, STARTED), Call(advance, 2, 3, once), Call(advance, 4, 5, twice)])


def test_a_lost_answer_takes_effect_at_some_time_after_its_start() -> None:
    cancel = Op("CancelDeployment", "a", "r")
    seen = Op("GetDeploymentStatus", "a")
    calls = [Call(A, 0, 1, STARTED), Call(cancel, 2, 3, None), Call(seen, 4, 5, STARTED)]
    assert check(calls).deployments[0].status == "CANCELLED"
    with pytest.raises(NotLinearizable):
        check([*calls, Call(B, 6, 7, BUSY), Call(B, 8, 9, STARTED), Call(seen, 10, 11, STARTED)])


def test_a_line_starts_in_its_order() -> None:
    queue = [Op("TriggerDeployment", id, id, on_busy="QUEUE") for id in "abc"]
    calls = [Call(op, n, n + 0.5, None) for n, op in enumerate(queue)]
    calls = [
        Call(queue[0], 0, 1, STARTED),
        Call(queue[1], 2, 3, ("OK", "PENDING", -1)),
        Call(queue[2], 4, 5, ("OK", "PENDING", -1)),
        Call(Op("CancelDeployment", "a", "x"), 6, 7, ("OK", "CANCELLED", 0)),
    ]
    check([*calls, Call(Op("GetDeploymentStatus", "b"), 8, 9, STARTED)])
    with pytest.raises(NotLinearizable):
        check([*calls, Call(Op("GetDeploymentStatus", "c"), 8, 9, STARTED)])
