"""The wire's generated code is fresh, and every field says what it is and in which unit."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet

ROOT = Path(__file__).resolve().parents[2]
PROTOS = sorted(ROOT.glob("protos/slos/v1/*.proto"))
NAMES = [str(path.relative_to(ROOT)) for path in PROTOS]
NUMBERS = {
    FieldDescriptorProto.TYPE_DOUBLE,
    FieldDescriptorProto.TYPE_INT32,
    FieldDescriptorProto.TYPE_INT64,
    FieldDescriptorProto.TYPE_UINT32,
    FieldDescriptorProto.TYPE_UINT64,
}
# A number is a quantity with a unit, or a name for something (an id, a code, a version, a seed).
UNIT = re.compile(
    r"second|token|count|ratio|multiple|dimensionless|\d\.\.|> 0|quantile|probabilit|logarithm"
    r"|\bids?\b|number|version|code|seed|rank|unchanged|as in|event|block",
    re.IGNORECASE,
)


def protoc(arguments: list[str]) -> None:
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", "-I", ".", *arguments, *NAMES], cwd=ROOT, check=True)


def test_generated_code_is_fresh(tmp_path: Path) -> None:
    protoc([f"--python_out={tmp_path}", f"--pyi_out={tmp_path}", f"--grpc_python_out={tmp_path}"])
    made = sorted(path for path in tmp_path.rglob("*_pb2*.py*") if "__pycache__" not in path.parts)
    assert len(made) == 3 * len(PROTOS)
    stale = [path.name for path in made if path.read_text() != (ROOT / path.relative_to(tmp_path)).read_text()]
    assert not stale, "run `make proto` and commit what it writes"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[FileDescriptorProto]:
    out = tmp_path_factory.mktemp("descriptors") / "set"
    protoc([f"--descriptor_set_out={out}", "--include_source_info"])
    return list(FileDescriptorSet.FromString(out.read_bytes()).file)


def fields(file: FileDescriptorProto) -> Iterator[tuple[str, FieldDescriptorProto, str]]:
    """Each field with its qualified name and the comment that covers it: its own, else that of its oneof."""
    comments = {
        tuple(place.path): place.leading_comments.strip() or place.trailing_comments.strip()
        for place in file.source_code_info.location
    }
    for number, message in enumerate(file.message_type):
        yield from _fields(message, (4, number), comments)


def _fields(
    message: DescriptorProto, path: tuple[int, ...], comments: dict[tuple[int, ...], str]
) -> Iterator[tuple[str, FieldDescriptorProto, str]]:
    for number, field in enumerate(message.field):
        comment = comments.get((*path, 2, number), "")
        if not comment and field.HasField("oneof_index") and field.type == FieldDescriptorProto.TYPE_MESSAGE:
            comment = comments.get((*path, 8, field.oneof_index), "")
        yield f"{message.name}.{field.name}", field, comment


def test_every_field_has_a_comment(files: list[FileDescriptorProto]) -> None:
    everything = [entry for file in files for entry in fields(file)]
    assert len(everything) > 100
    assert [name for name, _, comment in everything if not comment] == []


def test_every_number_has_a_unit(files: list[FileDescriptorProto]) -> None:
    bare = [
        f"{name}: {comment}"
        for file in files
        for name, field, comment in fields(file)
        if field.type in NUMBERS and not UNIT.search(comment)
    ]
    assert bare == []


def test_every_enum_value_but_zero_has_a_comment(files: list[FileDescriptorProto]) -> None:
    bare = []
    for file in files:
        commented = {tuple(place.path) for place in file.source_code_info.location if place.leading_comments.strip()}
        for number, enum in enumerate(file.enum_type):
            bare += [
                value.name
                for position, value in enumerate(enum.value)
                if value.number != 0 and (5, number, 2, position) not in commented
            ]
    assert bare == []
