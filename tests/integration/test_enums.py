"""Every word that is stored or sent is the same in the proto, in Python and in SQL."""

import re
from enum import StrEnum

import psycopg
import pytest
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper

from deployment_pipeline.model import CauseCode, OnBusy, Outcome
from deployment_pipeline.postgres.migrate import SQL
from deployment_pipeline.states import STATUSES, EventType, Status
from dp.v1 import deployment_pipeline_pb2 as pb

WORD = re.compile("'([A-Z_]{2,})'")
FUNCTIONS = "\n".join(
    re.sub("--.*", "", path.read_text()) for path in sorted((SQL / "functions").glob("*.sql"))
)
STORED_CAUSES = {CauseCode.CANCELLED, CauseCode.ROLLED_BACK, CauseCode.SUPERSEDED}


@pytest.mark.parametrize(
    ("ours", "protos"),
    [
        (Status, pb.DeploymentStatus.Status),
        (EventType, pb.Event.Type),
        (CauseCode, pb.Cause.Code),
        (OnBusy, pb.TriggerDeploymentRequest.OnBusy),
    ],
)
def test_the_protos_words_are_pythons(ours: type[StrEnum], protos: EnumTypeWrapper) -> None:
    unspecified = protos.Name(0)
    assert unspecified.endswith("_UNSPECIFIED")
    assert set(protos.keys()) - {unspecified} == set(ours) - {"UNSPECIFIED"}


def constraint(sql: psycopg.Connection, name: str) -> set[str]:
    row = sql.execute(
        "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = %s", (name,)
    ).fetchone()
    assert row
    return set(WORD.findall(row[0]))


def test_sqls_words_are_pythons(sql: psycopg.Connection) -> None:
    assert constraint(sql, "dp_deployments_status") == set(STATUSES)
    assert constraint(sql, "dp_events_law") == {*EventType, *STATUSES} - {"UNSPECIFIED"}
    assert constraint(sql, "dp_deployments_cause") == STORED_CAUSES


def test_the_functions_say_no_word_that_python_does_not_know() -> None:
    known = {*Status, *EventType, *CauseCode, *OnBusy, *Outcome}
    assert set(WORD.findall(FUNCTIONS)) <= known


def test_every_outcome_is_one_of_some_function() -> None:
    assigned = re.findall(r"outcome := (.*?);", FUNCTIONS, re.DOTALL)
    repeats = re.findall(r"SELECT CASE WHEN p_event.*?END", FUNCTIONS, re.DOTALL)
    said = set(WORD.findall(" ".join([*assigned, *repeats])))
    assert set(Outcome) <= said
