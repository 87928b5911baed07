"""Two replicas against the contract's model, one random call after the other."""

import asyncio
import os
import uuid
from collections.abc import Callable, Iterator

import grpc
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from support.clients import TypedClient
from support.contract_model import MAX_PENDING, Op, State, apply
from support.history import STAGE_NAMES, History, refusal_of, response_of, rollback_op, trigger_op
from support.servers import server
from support.stores import Stores

EXAMPLES = int(os.environ.get("DP_TEST_EXAMPLES", "12"))


@pytest.fixture(scope="module")
def addresses(stores: Stores) -> Iterator[list[str]]:
    quiet = {"DP_LOG_LEVEL": "error"}
    with server(stores, quiet) as one, server(stores, quiet) as other:
        yield [one.address, other.address]


def test_every_answer_is_the_models(  # noqa: C901  # a small rule per call
    addresses: list[str], new_name: Callable[[], str]
) -> None:
    with asyncio.Runner() as runner:
        channels = [grpc.aio.insecure_channel(address) for address in addresses]
        clients = [TypedClient(channel) for channel in channels]

        class Replicas(RuleBasedStateMachine):
            def __init__(self) -> None:
                super().__init__()
                self.pipeline, self.state, self.repeatable = new_name(), State(), list[tuple[Op, str]]()
                fields = {"name": self.pipeline, "stages": STAGE_NAMES, "max_pending": MAX_PENDING}
                runner.run(clients[0].call("CreatePipeline", **fields))  # type: ignore[arg-type]

            def do(self, op: Op, replica: int, version: str = "") -> None:
                call = History().call(clients[replica], self.pipeline, op, version=version)
                record = runner.run(call)
                self.state, expected = apply(self.state, op)
                answered = response_of(record.answer) if record.answer else refusal_of(record)
                assert answered == expected
                if record.answer and op.request_id and op.id:
                    self.repeatable.append((op, version))

            def about(self, which: int) -> str:
                known = self.state.deployments
                return known[-1 - which % len(known)].id if known else str(uuid.UUID(int=1))

            @rule(replica=st.integers(0, 1), on_busy=st.sampled_from(["REJECT", "QUEUE", "SUPERSEDE"]))
            def trigger(self, replica: int, on_busy: str) -> None:
                request_id = uuid.uuid4().hex
                self.do(trigger_op(self.pipeline, request_id, on_busy), replica, "1")

            @rule(
                replica=st.integers(0, 1),
                which=st.integers(0, 5),
                expected_stage=st.sampled_from([None, None, 0, 1]),
            )
            def advance(self, replica: int, which: int, expected_stage: int | None) -> None:
                op = Op("AdvanceStage", self.about(which), uuid.uuid4().hex, expected_stage=expected_stage)
                self.do(op, replica)

            @rule(replica=st.integers(0, 1), which=st.integers(0, 5))
            def cancel(self, replica: int, which: int) -> None:
                self.do(Op("CancelDeployment", self.about(which), uuid.uuid4().hex), replica)

            @rule(replica=st.integers(0, 1), which=st.integers(0, 5), redeploys=st.booleans())
            def rollback(self, replica: int, which: int, redeploys: bool) -> None:
                op = rollback_op(self.about(which), uuid.uuid4().hex, redeploys=redeploys)
                self.do(op, replica)

            @rule(replica=st.integers(0, 1))
            def lock(self, replica: int) -> None:
                self.do(Op("LockPipeline", "", uuid.uuid4().hex), replica)

            @rule(replica=st.integers(0, 1), start_next=st.booleans())
            def unlock(self, replica: int, start_next: bool) -> None:
                self.do(Op("UnlockPipeline", "", uuid.uuid4().hex, start_next=start_next), replica)

            @rule(replica=st.integers(0, 1), which=st.integers(0, 50))
            def repeat(self, replica: int, which: int) -> None:
                if self.repeatable:
                    op, version = self.repeatable[which % len(self.repeatable)]
                    self.do(op, replica, version)

            @invariant()
            def the_history_is_the_models(self) -> None:
                history = runner.run(clients[1].call("GetHistory", pipeline_name=self.pipeline, limit=1000))
                shown = [
                    (d.id, d.Status.Name(d.status), d.stage_index if d.HasField("stage_index") else -1)
                    for d in history.deployments
                ]
                assert shown == [tuple(d) for d in reversed(self.state.deployments)]

        run_state_machine_as_test(
            Replicas,
            settings=settings(
                max_examples=EXAMPLES,
                stateful_step_count=30,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
        runner.run(_close(channels))


async def _close(channels: list[grpc.aio.Channel]) -> None:
    for channel in channels:
        await channel.close()
