"""The contract as a small pure model of one pipeline, against which what servers answered is judged."""

from dataclasses import dataclass
from typing import Any, NamedTuple

STAGES = 2
MAX_PENDING = 3
FINAL = ("COMPLETED", "CANCELLED", "ROLLED_BACK")


class Deployment(NamedTuple):
    id: str
    status: str
    stage: int  # -1: not started


class State(NamedTuple):
    """Hashable: the search remembers where it has been."""

    deployments: tuple[Deployment, ...] = ()  # by seq
    locked: bool = False
    done: frozenset[tuple[str, str]] = frozenset()  # request_id, the deployment that it was about

    def active(self) -> Deployment | None:
        return next((d for d in self.deployments if d.status == "IN_PROGRESS"), None)

    def find(self, id: str) -> Deployment | None:
        return next((d for d in self.deployments if d.id == id), None)

    def put(self, new: Deployment) -> "State":
        return self._replace(deployments=tuple(new if d.id == new.id else d for d in self.deployments))

    def promoted(self) -> "State":
        """With the oldest in line started, if the slot is free and no lock stands."""
        head = next((d for d in self.deployments if d.status == "PENDING"), None)
        if head is None or self.active() or self.locked:
            return self
        return self.put(Deployment(head.id, "IN_PROGRESS", 0))


@dataclass(frozen=True)
class Op:
    """One call. `id` is the deployment's, a trigger's too: it follows from the request_id."""

    method: str
    id: str = ""
    request_id: str = ""
    on_busy: str = "REJECT"
    expected_stage: int | None = None
    redeploy_id: str = ""  # of the deployment that a Rollback puts in the place, if it is to
    start_next: bool = False


# What a call answered: ("OK", status, stage) of its deployment, ("OK",), or (a refusal's reason,).
Response = tuple[Any, ...]


def snapshot(deployment: Deployment) -> Response:
    return ("OK", deployment.status, deployment.stage)


def apply(state: State, op: Op) -> tuple[State, Response]:
    """What the contract says to a call in this state: the state after it, and the answer."""
    done = dict(state.done)
    if op.request_id in done:
        known = state.find(done[op.request_id])
        return state, snapshot(known) if known else ("OK",)
    response: Response
    match op.method:
        case "GetDeploymentStatus":
            found = state.find(op.id)
            return state, snapshot(found) if found else ("DEPLOYMENT_NOT_FOUND",)
        case "LockPipeline":
            if state.locked:
                return state, ("OK",)  # the same lock stands: nothing is written
            after, response = state._replace(locked=True), ("OK",)
        case "UnlockPipeline":
            unlocked = state._replace(locked=False)
            after, response = (unlocked.promoted() if op.start_next else unlocked), ("OK",)
            if not state.locked and after == state:
                return state, ("PIPELINE_NOT_LOCKED",)
        case "TriggerDeployment":
            after, response = _trigger(state, op)
        case _:
            after, response = _change(state, op)
    if response[0] == "OK" and op.request_id:
        after = after._replace(done=after.done | {(op.request_id, op.id)})
    return after, response


def _trigger(state: State, op: Op) -> tuple[State, Response]:
    resumed = state.promoted()  # a line that nobody resumed starts before anything is judged
    active = resumed.active()
    waiting = [d for d in resumed.deployments if d.status == "PENDING"]
    if active and op.on_busy == "REJECT":
        return resumed, ("PIPELINE_BUSY", active.id)
    if state.locked:
        return state, ("PIPELINE_LOCKED",)
    if active and op.on_busy == "QUEUE" and len(waiting) >= MAX_PENDING:
        return resumed, ("QUEUE_FULL",)
    if active and op.on_busy == "SUPERSEDE":
        for old in waiting:
            resumed = resumed.put(Deployment(old.id, "CANCELLED", -1))
    new = Deployment(op.id, "PENDING", -1) if active else Deployment(op.id, "IN_PROGRESS", 0)
    return resumed._replace(deployments=(*resumed.deployments, new)), snapshot(new)


def _change(state: State, op: Op) -> tuple[State, Response]:
    found = state.find(op.id)
    if found is None:
        return state, ("DEPLOYMENT_NOT_FOUND",)
    if found.status in FINAL:
        return state, ("DEPLOYMENT_ENDED", found.status)
    if found.status == "PENDING" and op.method != "CancelDeployment":
        return state, ("DEPLOYMENT_NOT_IN_PROGRESS",)
    if op.expected_stage not in (None, found.stage):
        return state, ("STAGE_MISMATCH",)
    match op.method:
        case "AdvanceStage":
            last = found.stage + 1 == STAGES
            new = found._replace(status="COMPLETED") if last else found._replace(stage=found.stage + 1)
        case "CancelDeployment":
            new = found._replace(status="CANCELLED")
        case _:
            new = found._replace(status="ROLLED_BACK")
    after = state.put(new)
    if op.redeploy_id:
        redeployed = Deployment(op.redeploy_id, "IN_PROGRESS", 0)
        after = after._replace(deployments=(*after.deployments, redeployed))
    freed = found.status == "IN_PROGRESS" and new.status in FINAL
    return (after.promoted() if freed else after), snapshot(new)
