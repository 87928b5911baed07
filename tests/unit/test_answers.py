"""Every refusal has a code, a reason of its own, a text with its facts, and fits into gRPC's metadata."""

import base64
import dataclasses
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import UUID

import pytest
from google.rpc import error_details_pb2, status_pb2

from deployment_pipeline.edge import answers
from deployment_pipeline.refusals import Refusal, Violation

PROTO = Path(__file__).parents[2] / "protos" / "dp" / "v1" / "deployment_pipeline.proto"


def leaves(kind: type[Refusal]) -> list[type[Refusal]]:
    return [leaf for below in kind.__subclasses__() for leaf in leaves(below)] or [kind]


LEAVES = leaves(Refusal)
METADATA_LIMIT = 8192

# The largest and widest texts that the rules let through.
WIDE = "\U0001f680"
LARGEST: dict[str, Any] = {
    "violations": [Violation(f"labels[{WIDE * 63}]", WIDE * 200)] * 100,
    "request_id": WIDE * 32,
    "owner": WIDE * 256,
    "lock_reason": WIDE * 1024,
    "expires_at": datetime(2026, 1, 1, tzinfo=UTC),
    "max_pending": 10_000,
    "pipeline": "p" * 63,
    "deployment_id": UUID(int=1),
    "differs": ["stages", "description", "labels", "max_pending"],
    "version": WIDE * 256,
    "stage": "s" * 63,
    "expected_stage": "s" * 63,
    "current_stage": "s" * 63,
    "since": datetime(2026, 1, 1, tzinfo=UTC),
    "ended_at": datetime(2026, 1, 1, tzinfo=UTC),
    "status": "PENDING",
    "revision": 2**63 - 1,
    "expected_revision": 2**63 - 1,
    "current_revision": 2**63 - 1,
    "level": 999,
    "finished_level": 998,
    "subject": f"deployment {UUID(int=1)}",
    "call": "UpdatePipeline",
    "tokens": ["request_id", "expected_revision"],
    "lock_no": 2**63 - 1,
    "locked_by": "p" * 512,
    "ways": ["a bearer token (JWT) of one of: " + ", ".join(["i" * 63] * 10)],
    "principal": "p" * 512,
    "role": "operator",
    "issuer": "i" * 63,
    "retry_ms": 60_000,
    "asked_lock_no": 2**63 - 1,
}


def largest(leaf: type[Refusal]) -> Refusal:
    return leaf(**{field.name: LARGEST[field.name] for field in dataclasses.fields(leaf)})


def test_the_table_of_codes_is_complete() -> None:
    assert set(answers.CODES) == set(LEAVES)
    assert len({leaf.reason for leaf in LEAVES}) == len(LEAVES)


@pytest.mark.parametrize("leaf", LEAVES)
def test_the_proto_documents_the_reason_with_its_code(leaf: type[Refusal]) -> None:
    prose = PROTO.read_text().replace("\n//", "").replace("\n  //", "")
    assert f"{answers.CODES[leaf].name}/{leaf.reason}" in prose


@pytest.mark.parametrize("leaf", LEAVES)
def test_the_details_repeat_what_the_message_says(leaf: type[Refusal]) -> None:
    code, message, details, *_ = answers.of(largest(leaf))
    parsed = status_pb2.Status.FromString(details)
    assert (parsed.code, parsed.message) == (code.value[0], message)
    info = error_details_pb2.ErrorInfo()
    assert parsed.details[0].Unpack(info)
    assert (info.domain, info.reason) == ("dp.v1", leaf.reason)


def test_only_a_blind_repeat_is_told_that_it_may_have_met_itself() -> None:
    for leaf in LEAVES:
        refusal = largest(leaf)
        assert "may_be_own" not in answers.of(refusal).facts
        told = "may_be_own" in answers.of(refusal, is_blind_repeat=True).facts
        assert told == (leaf in answers.MAY_BE_OWN)


@pytest.mark.parametrize("leaf", LEAVES)
def test_the_largest_status_fits_into_grpcs_metadata(leaf: type[Refusal]) -> None:
    _, message, details, *_ = answers.of(largest(leaf), is_blind_repeat=True)
    size = len(quote(message, safe=" ")) + len(base64.b64encode(details))
    assert size < METADATA_LIMIT - 500
