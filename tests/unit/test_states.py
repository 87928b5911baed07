from deployment_pipeline.states import FINAL, PIPELINE_EVENTS, STATUSES, TRANSITIONS, EventType, Status
from dp.v1 import deployment_pipeline_pb2 as pb


def test_nothing_leaves_a_final_status() -> None:
    assert {Status.COMPLETED, Status.ROLLED_BACK, Status.CANCELLED} == FINAL
    assert not [start for start, _ in TRANSITIONS if start in FINAL]


def test_every_status_is_reached_and_every_event_is_used() -> None:
    assert {event for _, event in TRANSITIONS} == set(EventType) - PIPELINE_EVENTS - {EventType.UNSPECIFIED}
    assert FINAL | {Status.IN_PROGRESS} <= set(TRANSITIONS.values())


def test_the_protos_statuses_are_the_laws() -> None:
    assert set(pb.DeploymentStatus.Status.keys()) == {"STATUS_UNSPECIFIED", *STATUSES}


def test_the_protos_fields_have_the_promised_numbers() -> None:
    fields = [field.name for field in pb.DeploymentStatus.DESCRIPTOR.fields if field.number <= 7]
    assert fields == [
        *("id", "pipeline_name", "version", "current_stage", "status"),
        *("started_at", "completed_at"),
    ]
