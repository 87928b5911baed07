"""What is stored of a request must mean the same in every release."""

import inspect
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Annotated, Any
from uuid import UUID

import pytest

from deployment_pipeline import commands
from deployment_pipeline.commands import (
    AdvanceStage,
    CancelDeployment,
    Command,
    CreatePipeline,
    DeploymentCommand,
    LockPipeline,
    PipelineCommand,
    Rollback,
    TriggerDeployment,
    UnlockPipeline,
    UpdatePipeline,
)
from deployment_pipeline.fields import Rules
from deployment_pipeline.model import OnBusy
from deployment_pipeline.refusals import InvalidFields

ID = UUID("0199f6a2-7f2c-7bd0-8a55-1c2d3e4f5a6b")
AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
# A digest that changes here turns every retry across that release into REQUEST_ID_REUSED.
STORED: list[tuple[Command, str]] = [
    (CreatePipeline(name="shop", stages=["a", "b"]), "57213497d0144141ececcf9721aad5e0"),
    (
        UpdatePipeline(name="shop", update_mask=["labels"], labels={"b": "2", "a": "1"}),
        "6e066f75edc282eaae20feb65e70d4d8",
    ),
    (LockPipeline(name="shop", reason="why", owner="ops", expires_at=AT), "e7226e08d34081857a818acc1ff3be48"),
    (UnlockPipeline(name="shop", start_next=True), "12747faf97d0c7eaf6339c5c22d702f4"),
    (
        TriggerDeployment(pipeline_name="shop", version="1", on_busy=OnBusy.QUEUE, reason="ü"),
        "baa93fac6377f3bf05a7f2119e6a8ed6",
    ),
    (AdvanceStage(deployment_id=ID, expected_stage="a"), "256010fba883abd172ba737e091da8e6"),
    (Rollback(deployment_id=ID, redeploy_version="1"), "c1b79514064d8cf8b68fccc9160826e3"),
    (CancelDeployment(deployment_id=ID), "5d4d8dc81b0bcd9b43ae7b5552666315"),
]


@pytest.mark.parametrize(("command", "digest"), STORED)
def test_i1_a_stored_digest_keeps_its_meaning(command: Command, digest: str) -> None:
    assert command.digest().hex() == digest


def test_the_list_of_stored_digests_is_complete() -> None:
    changes = {
        value
        for _, value in inspect.getmembers(commands, inspect.isclass)
        if issubclass(value, Command) and value not in (Command, PipelineCommand, DeploymentCommand)
    }
    assert {type(command) for command, _ in STORED} == changes


def test_i1_a_request_means_the_same_to_a_release_with_one_more_field() -> None:
    @dataclass(frozen=True, slots=True, kw_only=True)
    class Newer(TriggerDeployment):
        ticket: Annotated[str, Rules.text] = ""

    Newer.__name__ = "TriggerDeployment"
    asked: dict[str, Any] = {"pipeline_name": "shop", "version": "1", "reason": "r"}
    assert Newer(**asked).digest() == TriggerDeployment(**asked).digest()
    assert Newer(**asked, ticket="T-1").digest() != TriggerDeployment(**asked).digest()


def test_i2_another_request_has_another_digest() -> None:
    trigger = TriggerDeployment(pipeline_name="shop", version="1", labels={"a": "1", "b": "2"})
    assert trigger.digest() == replace(trigger, labels={"b": "2", "a": "1"}, request_id="r").digest()
    others = [
        replace(trigger, version="2"),
        replace(trigger, reason="1"),
        replace(trigger, on_busy=OnBusy.QUEUE),
        replace(trigger, labels={"a": "1"}),
        replace(trigger, pipeline_name="1", version="shop"),
        AdvanceStage(deployment_id=ID),
        CancelDeployment(deployment_id=ID),
    ]
    assert len({command.digest() for command in [trigger, *others]}) == 1 + len(others)


def test_a_time_is_the_same_in_every_zone() -> None:
    here = AT.astimezone(timezone(timedelta(hours=5)))
    locks = [LockPipeline(name="shop", reason="r", expires_at=at) for at in (AT, here)]
    assert locks[0].digest() == locks[1].digest()


def test_all_broken_fields_of_a_command_are_reported_at_once() -> None:
    asked: Any = {
        "deployment_id": "x",
        "redeploy_last_completed": False,
        "redeploy_version": "",
        "reason": "\0",
    }
    with pytest.raises(InvalidFields) as refused:
        Rollback(request_id="\n", **asked).check()
    assert {v.field for v in refused.value.violations} == {"request_id", *asked}


def test_what_has_its_default_is_not_checked() -> None:
    AdvanceStage(deployment_id=ID).check()
    TriggerDeployment(pipeline_name="shop", version="1").check()
