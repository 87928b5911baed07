"""Who may do what: principal by method, on pipelines of one's own and on others', by name, by id, by page."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import grpc
import pytest
from grpc import StatusCode

from deployment_pipeline.run.settings import Settings
from dp.v1 import deployment_pipeline_pb2 as pb
from support.clients import Answer, Refused
from support.secured import As, Files, grant, secured
from support.steps import outcome, queue, refusal, rollback, trigger

ROLES = ("viewer", "deployer", "operator", "admin")
# What each role may, as the contract has it.
MAY = {
    "viewer": {
        "GetPipeline", "ListPipelines", "GetPipelineState", "GetDeploymentStatus", "GetHistory", "ListEvents",
    },
    "deployer": {"TriggerDeployment", "AdvanceStage", "CancelDeployment", "Rollback"},
    "operator": {"LockPipeline", "UnlockPipeline"},
    "admin": {"CreatePipeline", "UpdatePipeline"},
}  # fmt: skip
BY_NAME = {
    "GetPipeline": "name",
    "GetPipelineState": "name",
    "GetHistory": "pipeline_name",
    "ListEvents": "pipeline_name",
    "TriggerDeployment": "pipeline_name",
    "LockPipeline": "name",
    "UnlockPipeline": "name",
    "CreatePipeline": "name",
    "UpdatePipeline": "name",
}
BY_ID = ("GetDeploymentStatus", "ListEvents", "AdvanceStage", "CancelDeployment", "Rollback")
# What else a request must have to be carried out.
MORE: dict[str, dict[str, Any]] = {
    "TriggerDeployment": {"version": "1"},
    "LockPipeline": {"reason": "r"},
    "CreatePipeline": {"stages": ["a"]},
    "UpdatePipeline": {"description": "d"},
}


def named(method: str, pipeline: str) -> dict[str, Any]:
    """The fields of such a request."""
    return {BY_NAME[method]: pipeline, **MORE.get(method, {})}


def may(role: str, method: str) -> bool:
    return any(method in MAY[below] for below in ROLES[: ROLES.index(role) + 1])


def test_the_matrix_holds_every_method() -> None:
    methods = {method.name for method in pb.DESCRIPTOR.services_by_name["DeploymentPipeline"].methods}
    assert set().union(*MAY.values()) | {"GetServerInfo"} == methods
    assert {*BY_NAME, *BY_ID, "ListPipelines", "GetServerInfo"} == methods


@dataclass
class World:
    """own and foreign: prefixes of names. The clients with a role have it on own names only."""

    channel: grpc.aio.Channel
    own: str
    foreign: str

    def of(self, name: str) -> As:
        return As(self.channel, name)

    async def pipeline(self, prefix: str) -> tuple[str, str]:
        """A new one's name, and the id of its active deployment."""
        root, name = self.of("root"), f"{prefix}{uuid4().hex[:12]}"
        await root.call("CreatePipeline", name=name, stages=["a", "b"])
        return name, (await trigger(root, name)).id


@pytest.fixture(scope="module")
async def world(
    settings: Settings, tmp_path_factory: pytest.TempPathFactory, new_name: Callable[[], str]
) -> AsyncIterator[World]:
    files = Files(tmp_path_factory.mktemp("secured"))
    own, foreign = f"{new_name()}-own-", f"{new_name()}-foreign-"
    files.write_tokens(
        {role: [f"{role}s"] for role in ROLES} | {"stranger": [], "root": [], "gone": [], "everywhere": []}
    )
    files.write_grants(
        "".join(grant(f'issuer = "token", group = "{role}s"', role, f"{own}*") for role in ROLES)
        + grant('id = "token:root"', "admin")
        + grant('id = "token:everywhere"', "viewer")
        + grant('id = "token:gone"', "admin")
        + '[[deny]]\nmatch = { id = "token:gone" }\n'
    )
    async with secured(settings, files) as channel:
        yield World(channel, own, foreign)


def is_denied(result: Answer | Refused) -> bool:
    return isinstance(result, Refused) and result.code in (
        StatusCode.PERMISSION_DENIED,
        StatusCode.UNAUTHENTICATED,
    )


def without(text: str, *names: str) -> str:
    for name in names:
        text = text.replace(name, "...")
    return text


@pytest.mark.parametrize("method", BY_NAME)
@pytest.mark.parametrize("role", ROLES)
async def test_r1_by_name(world: World, role: str, method: str) -> None:
    client = world.of(role)
    own, _ = await world.pipeline(world.own)
    foreign, _ = await world.pipeline(world.foreign)
    absent = f"{world.foreign}absent"

    result = await outcome(client.call(method, **named(method, own)))
    if may(role, method):
        assert not is_denied(result)
    else:
        assert isinstance(result, Refused)
        assert (result.code, result.reason) == (StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED")
        needed = next(name for name in ROLES if method in MAY[name])
        assert (result.facts["role"], result.facts["pipeline"]) == (needed, own)
        assert needed in result.message

    refused = await refusal(client.call(method, **named(method, foreign)))
    of_none = await refusal(client.call(method, **named(method, absent)))
    assert refused.code == of_none.code == StatusCode.PERMISSION_DENIED
    assert without(refused.message, foreign) == without(of_none.message, absent)
    assert {**refused.facts, "pipeline": ""} == {**of_none.facts, "pipeline": ""}


@pytest.mark.parametrize("method", BY_ID)
@pytest.mark.parametrize("role", ROLES)
async def test_r1_by_id(world: World, role: str, method: str) -> None:
    client = world.of(role)
    _, own = await world.pipeline(world.own)
    _, foreign = await world.pipeline(world.foreign)
    absent = str(uuid4())

    result = await outcome(client.call(method, deployment_id=own))
    if may(role, method):
        assert isinstance(result, Answer)
    else:
        assert isinstance(result, Refused)
        assert result.code == StatusCode.PERMISSION_DENIED

    for _ in range(2):  # the second time, the foreign one's pipeline is known without asking
        refused = await refusal(client.call(method, deployment_id=foreign))
        of_none = await refusal(client.call(method, deployment_id=absent))
        assert refused.code == of_none.code == StatusCode.NOT_FOUND
        assert refused.reason == of_none.reason == "DEPLOYMENT_NOT_FOUND"
        assert without(refused.message, foreign) == without(of_none.message, absent)
        assert {key: str(value).replace(foreign, "...") for key, value in refused.details.items()} == {
            key: str(value).replace(absent, "...") for key, value in of_none.details.items()
        }


@pytest.mark.parametrize("name", ["stranger", "gone"])
async def test_r1_whoever_has_no_role_may_nothing_but_ask_who_he_is(world: World, name: str) -> None:
    client = world.of(name)
    pipeline, deployment = await world.pipeline(world.own)
    for method in BY_NAME:
        refused = await refusal(client.call(method, **named(method, pipeline)))
        assert refused.code == StatusCode.PERMISSION_DENIED
    for method in BY_ID:
        refused = await refusal(client.call(method, deployment_id=deployment))
        assert refused.code in (StatusCode.NOT_FOUND, StatusCode.PERMISSION_DENIED)
    assert is_denied(await outcome(client.call("ListPipelines")))
    info = await outcome(client.call("GetServerInfo"))
    if name == "stranger":
        assert (info.message.principal, list(info.message.grants)) == ("token:stranger", [])  # type: ignore[union-attr]
    else:
        assert is_denied(info)


async def test_r1_a_list_shows_what_the_caller_may_see(world: World) -> None:
    own = sorted([(await world.pipeline(world.own))[0] for _ in range(3)])
    await world.pipeline(world.foreign)
    pages, token = [], ""
    while True:
        page = await world.of("viewer").call("ListPipelines", page_size=2, page_token=token)
        pages += [pipeline.name for pipeline in page.pipelines]
        token = page.next_page_token
        if not token:
            break
    assert set(own) <= set(pages)
    assert all(name.startswith(world.own) for name in pages)
    assert pages == sorted(set(pages))


async def test_r1_another_callers_page_token_shows_nothing_more(world: World) -> None:
    pipeline, _ = await world.pipeline(world.foreign)
    await queue(world.of("root"), pipeline)
    root, viewer = world.of("root"), world.of("viewer")

    token = (await root.call("ListPipelines", page_size=1)).next_page_token
    shown = await viewer.call("ListPipelines", page_size=1000, page_token=token)
    assert all(one.name.startswith(world.own) for one in shown.pipelines)

    token = (await root.call("GetHistory", pipeline_name=pipeline, limit=1)).next_page_token
    assert token
    refused = await refusal(viewer.call("GetHistory", pipeline_name=pipeline, limit=1, page_token=token))
    assert refused.code == StatusCode.PERMISSION_DENIED

    token = (await root.call("ListEvents", pipeline_name=pipeline, page_size=1)).next_page_token
    assert token
    refused = await refusal(viewer.call("ListEvents", pipeline_name=pipeline, page_size=1, page_token=token))
    assert refused.code == StatusCode.PERMISSION_DENIED


async def test_r1_what_redis_knows_is_not_told_to_those_who_may_not_trigger(world: World) -> None:
    pipeline, active = await world.pipeline(world.foreign)
    assert (await refusal(trigger(world.of("root"), pipeline))).facts["deployment_id"] == active
    for name in ("deployer", "everywhere"):
        refused = await refusal(trigger(world.of(name), pipeline))
        assert refused.reason == "PERMISSION_DENIED"
        assert active not in str(refused) + str(refused.details)


async def test_r1_whoever_sees_everything_may_still_change_nothing(world: World) -> None:
    pipeline, active = await world.pipeline(world.foreign)
    client = world.of("everywhere")
    assert (await client.call("GetDeploymentStatus", deployment_id=active)).id == active
    assert (await client.call("GetPipelineState", name=pipeline)).active.id == active
    assert (await refusal(rollback(client, active))).facts["role"] == "deployer"
    assert (await refusal(rollback(client, str(uuid4())))).reason == "DEPLOYMENT_NOT_FOUND"


@pytest.mark.parametrize("broken", ["", "not an id", "0" * 36])
async def test_an_id_that_is_none_breaks_its_rule_for_those_who_have_the_role(
    world: World, broken: str
) -> None:
    assert (await refusal(rollback(world.of("deployer"), broken))).reason == "INVALID_FIELD"
    assert (await refusal(rollback(world.of("viewer"), broken))).reason == "PERMISSION_DENIED"


async def test_r1_rights_are_judged_before_the_fields(world: World) -> None:
    assert (
        await refusal(trigger(world.of("deployer"), f"{world.foreign}x", ""))
    ).reason == "PERMISSION_DENIED"
    assert (await refusal(trigger(world.of("deployer"), f"{world.own}x", ""))).reason == "INVALID_FIELD"
    for method in (*BY_NAME, *BY_ID):
        assert is_denied(await outcome(world.of("stranger").send(method, b"\xff\xff"))), method


async def test_the_caller_is_told_who_and_what_it_is(world: World) -> None:
    info = await world.of("operator").call("GetServerInfo")
    assert (info.principal, info.via, list(info.groups)) == ("token:operator", "", ["operators"])
    [told] = info.grants
    assert (told.role, list(told.pipelines), told.impersonate) == (
        pb.Grant.OPERATOR,
        [f"{world.own}*"],
        False,
    )
    assert info.limits.page_items == 1000
    assert info.limits.call.seconds == 10
    assert list(info.features) == ["authentication", "reflection"]
    assert info.version
