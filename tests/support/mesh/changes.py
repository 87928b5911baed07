"""The calls whose repeats could do harm: with what they carry against it, and what became of them."""

import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeAlias

from support.clients import Answer, Client, Refused
from support.steps import trigger

Fields: TypeAlias = dict[str, Any]
STAGES = ["build", "test", "deploy"]
# Each call is made on a pipeline of its own, and its event has this reason.
REASON = "the call"
# Refusals that say that nothing happened, and that the call may be made again.
TROUBLE = {"STORE_UNAVAILABLE", "OVERLOADED", "SHUTTING_DOWN"}
# How a call is refused that is carried out only if things are still as it says.
COMPARED = {"STAGE_MISMATCH", "LOCK_MISMATCH", "PIPELINE_NOT_LOCKED"}


class Verdict(StrEnum):
    RIGHT = "right"
    # Two deployments, two stages, or two locks.
    TWICE = "carried out twice"
    # Refused because of what itself has done, and its caller was not told that it may be so.
    ITSELF = "refused because of itself"
    # The same, and its caller was told.
    TOLD = "told that it may be itself"
    # Refused by what it carries, a stage or a lock that its first attempt left.
    MISMATCH = "mismatch"
    MARKED = "RETRY_WITHOUT_TOKEN"
    # The connection broke, and so says the answer: its caller knows that anything may have happened.
    BROKEN = "connection broken"
    # Refused, and nothing happened.
    NOT_DONE = "not done"
    # OK, and nothing happened.
    WRONG = "OK for nothing"


HARM = {Verdict.TWICE, Verdict.ITSELF, Verdict.WRONG}


@dataclass(frozen=True)
class Change:
    kind: str
    method: str
    # Makes what the call needs, in a new pipeline of that name. Returns the call's fields.
    prepare: Callable[[Client, str], Awaitable[Fields]]
    # What it carries against repeats: the name of a field.
    carries: str = ""
    # Whether a repeat cannot do harm even if nobody can tell that it is one.
    is_safe: bool = False
    # Whether the service recognises it by a mesh's x-request-id.
    knows_identity: bool = True
    # Who locks the pipeline next; our own locks have no owner, unless the call names one.
    rival: str = ""

    @property
    def name(self) -> str:
        return f"{self.kind}, {self.carries}" if self.carries else self.kind


async def _pipeline(client: Client, name: str) -> None:
    await client.call("CreatePipeline", name=name, stages=STAGES)


async def _free(client: Client, name: str) -> Fields:
    await _pipeline(client, name)
    return {"pipeline_name": name, "version": "1"}


async def _busy(client: Client, name: str) -> Fields:
    await _pipeline(client, name)
    await trigger(client, name, "0")
    return {"pipeline_name": name, "version": "1", "on_busy": "QUEUE"}


async def _at_first_stage(client: Client, name: str) -> Fields:
    await _pipeline(client, name)
    return {"deployment_id": (await trigger(client, name)).id}


async def _locked_by_us(client: Client, name: str) -> Fields:
    await _pipeline(client, name)
    await client.call("LockPipeline", name=name, reason="ours", owner="us")
    return {"name": name, "owner": "us"}


async def _numbered(client: Client, name: str) -> Fields:
    await _pipeline(client, name)
    pipeline = await client.call("LockPipeline", name=name, reason="ours")
    return {"name": name, "lock_no": pipeline.lock.lock_no}


async def lock_next(client: Client, name: str, owner: str) -> None:
    """Somebody else locks it, if nobody does."""
    try:
        await client.call("LockPipeline", name=name, reason="theirs", owner=owner)
    except Refused as refused:
        assert refused.reason == "PIPELINE_LOCKED"  # noqa: PT017


def with_request_id(change: Change) -> Change:
    async def prepare(client: Client, name: str) -> Fields:
        return {**await change.prepare(client, name), "request_id": uuid.uuid4().hex}

    return Change(change.kind, change.method, prepare, "request_id", is_safe=True)


async def _expecting(client: Client, name: str) -> Fields:
    return {**await _at_first_stage(client, name), "expected_stage": STAGES[0]}


TRIGGER = Change("trigger", "TriggerDeployment", _free)
QUEUE = Change("queue", "TriggerDeployment", _busy)
ADVANCE = Change("advance", "AdvanceStage", _at_first_stage)
UNLOCK = Change("unlock", "UnlockPipeline", _locked_by_us, "owner", is_safe=True, rival="them")

CHANGES = [
    TRIGGER,
    QUEUE,
    ADVANCE,
    UNLOCK,
    with_request_id(TRIGGER),
    with_request_id(QUEUE),
    with_request_id(ADVANCE),
    with_request_id(UNLOCK),
    Change("advance", "AdvanceStage", _expecting, "expected_stage", is_safe=True),
    Change("unlock", "UnlockPipeline", _numbered, "lock_no", is_safe=True),
]


def is_final(result: Answer | Refused) -> bool:
    """Whether a caller need not send the call again."""
    return isinstance(result, Answer) or ("ErrorInfo" in result.details and result.reason not in TROUBLE)


def judge(change: Change, result: Answer | Refused, done: int) -> Verdict:
    """done: how many times the call was carried out."""
    if done > 1:
        return Verdict.TWICE
    if isinstance(result, Answer):
        return Verdict.RIGHT if done else Verdict.WRONG
    if "ErrorInfo" not in result.details:
        return Verdict.BROKEN
    if result.reason == "RETRY_WITHOUT_TOKEN":
        return Verdict.MARKED
    if not done:
        return Verdict.NOT_DONE
    if "may_be_own" in result.facts:
        return Verdict.TOLD
    return Verdict.MISMATCH if change.carries and result.reason in COMPARED else Verdict.ITSELF
