"""Any value in any field of any request: a normal answer or a refusal that says why, and one log line."""

import asyncio
import json
import os
from typing import Any

import grpc
import psycopg
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from grpc import StatusCode
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dp.v1 import deployment_pipeline_pb2 as pb
from support.clients import Refused, TypedClient
from support.servers import server
from support.stores import Stores, scratch_folder

EXAMPLES = int(os.environ.get("DP_TEST_EXAMPLES", "200"))
METHODS = pb.DESCRIPTOR.services_by_name["DeploymentPipeline"].methods_by_name
UUID = "0199f6a2-7f2c-7bd0-8a55-1c2d3e4f5a6b"

# Controls, what reorders text, a Cyrillic "a", what is too long, and what a careless store would run.
NASTY = [
    *("", "\x00", "a\x00b", "\x1b[2J", "\u202e", "\ufeff", "\u0430", "a" * 64, "x" * 5000),
    "'; DROP TABLE dp_events; --",
]
TEXT = st.one_of(
    st.sampled_from(NASTY),
    st.sampled_from(["fuzz", "build", UUID, "1.0"]),
    st.text(max_size=40),
)
WHOLE = st.one_of(st.integers(-3, 3), st.sampled_from([50, 1001, 2**31 - 1, -(2**31)]))
LONG = st.one_of(WHOLE, st.sampled_from([2**63 - 1, -(2**63)]))


def message(described: Descriptor | None) -> st.SearchStrategy[dict[str, Any]]:
    """Any subset of the fields, each with any value."""
    assert described
    return st.fixed_dictionaries({}, optional={field.name: value(field) for field in described.fields})


def value(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    if field.message_type and field.message_type.GetOptions().map_entry:
        return st.dictionaries(TEXT, TEXT, max_size=4)
    one: st.SearchStrategy[Any]
    match field.type:
        case FieldDescriptor.TYPE_STRING:
            one = TEXT
        case FieldDescriptor.TYPE_BOOL:
            one = st.booleans()
        case FieldDescriptor.TYPE_MESSAGE:
            one = message(field.message_type)
        case FieldDescriptor.TYPE_INT64:
            one = LONG
        case _:
            one = WHOLE
    return st.lists(one, max_size=4) if field.is_repeated else one


REQUESTS = st.sampled_from(sorted(METHODS)).flatmap(
    lambda method: st.tuples(st.just(method), message(METHODS[method].input_type))
)


def test_whatever_is_sent_is_answered_or_refused_with_a_reason(
    stores: Stores, sql: psycopg.Connection
) -> None:
    with (
        scratch_folder() as folder,
        (folder / "log").open("a+") as log,
        asyncio.Runner() as runner,
        server(stores, log=log) as running,
    ):
        channel = runner.run(_open(running.address))
        client = TypedClient(channel)
        runner.run(_refused(client, "CreatePipeline", {"name": "fuzz", "stages": ["build"]}))
        calls = 1

        @settings(
            max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck)
        )
        @given(REQUESTS)
        def holds(request: tuple[str, dict[str, Any]]) -> None:
            nonlocal calls
            method, fields = request
            before = _stored(sql)
            calls += 1
            refused = runner.run(_refused(client, method, _one_of(fields)))
            if refused:
                assert refused.code not in (StatusCode.INTERNAL, StatusCode.UNKNOWN), refused.message
                assert refused.reason
                assert _stored(sql) == before, f"{refused.reason} stored something"

        holds()
        runner.run(channel.close())
        assert running.stop() == 0
        log.seek(0)
        lines = [json.loads(line) for line in log]
        assert sum(line["event"] == "call" for line in lines) == calls
        assert not [line for line in lines if line["level"] == "error"]


def _one_of(fields: dict[str, Any]) -> dict[str, Any]:
    """Only one of a oneof's fields can be sent."""
    if "redeploy_version" in fields:
        fields.pop("redeploy_last_completed", None)
    return fields


def _stored(sql: psycopg.Connection) -> tuple[Any, ...] | None:
    return sql.execute(
        "SELECT (SELECT count(*) FROM dp_pipelines), (SELECT count(*) FROM dp_deployments),"
        " (SELECT count(*) FROM dp_events WHERE type <> 'PROMOTE')"
    ).fetchone()


async def _open(address: str) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(address)


async def _refused(client: TypedClient, method: str, fields: dict[str, Any]) -> Refused | None:
    try:
        await client.call(method, **fields)
    except Refused as refused:
        return refused
    return None
