"""The table of what each method needs is complete."""

from pathlib import Path

from google.protobuf.descriptor import FieldDescriptor

from deployment_pipeline.edge.grants import Role
from deployment_pipeline.edge.rights import METHODS, Needs
from dp.v1 import deployment_pipeline_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["DeploymentPipeline"]
PROTO = Path(__file__).parents[2] / "protos" / "dp" / "v1" / "deployment_pipeline.proto"
# The fields by which a request names a pipeline or a deployment.
NAMES = ("name", "pipeline_name", "deployment_id")


def test_every_method_has_a_row_and_no_row_is_of_anything_else() -> None:
    assert set(METHODS) == set(SERVICE.methods_by_name)


def test_every_field_that_names_what_a_call_is_about_is_looked_at() -> None:
    for method in SERVICE.methods:
        fields = method.input_type.fields_by_name
        assert set(METHODS[method.name].fields) == {name for name in NAMES if name in fields}, method.name
        for name in METHODS[method.name].fields:
            assert fields[name].type == FieldDescriptor.TYPE_STRING


def test_if_a_request_has_several_such_fields_only_one_can_be_set() -> None:
    for method in SERVICE.methods:
        named = METHODS[method.name].fields
        oneofs = {method.input_type.fields_by_name[name].containing_oneof for name in named}
        assert len(named) <= 1 or (len(oneofs) == 1 and None not in oneofs)


def test_only_what_names_nothing_is_open_to_callers_without_a_role() -> None:
    assert [name for name, needs in METHODS.items() if needs.role is Role.NONE] == ["GetServerInfo"]
    assert METHODS["GetServerInfo"] == Needs(Role.NONE)


def test_reads_need_no_more_than_a_viewer_and_changes_no_less_than_a_deployer() -> None:
    for name, needs in METHODS.items():
        if name.startswith(("Get", "List")):
            assert needs.role <= Role.VIEWER
        else:
            assert needs.role >= Role.DEPLOYER


def test_the_proto_says_which_role_each_method_needs() -> None:
    for name, needs in METHODS.items():
        if needs.role:
            assert f"  // Role: {needs.role}.\n  rpc {name}(" in PROTO.read_text()
