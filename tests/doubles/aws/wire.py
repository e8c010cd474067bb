"""AWS's protocols from the other side, driven by botocore's own models.

Requests are decoded and validated against the operation's input shape (members, types, enumerations,
patterns, bounds); answers are refused unless every field is of the output shape, with its type.
"""

from __future__ import annotations

import datetime as dt
import json
import re
from typing import Any

import botocore.session
from botocore.model import OperationModel, Shape

_CLASSES = {
    r"\p{L}": r"\w",
    r"\p{Z}": r"\s",
    r"\p{N}": r"\d",
    r"[\p{Print}]": r"[ -~]",
    r"\p{Print}": r"[ -~]",
    r"\z": r"\Z",
}
"""Java's classes of characters in Python's words, near enough."""
_ANY_CHARACTER = (r"\uD800", r"\p{ASCII}")
"""Patterns with these bind nothing that a test would notice."""
_MODELS: dict[str, Any] = {}


def service(name: str) -> Any:
    """botocore's model of a service."""
    if name not in _MODELS:
        _MODELS[name] = botocore.session.get_session().get_service_model(name)
    return _MODELS[name]


class Fault(Exception):
    """An error answer of the service."""

    def __init__(self, code: str, message: str, status: int = 400, **more: Any) -> None:
        super().__init__(f"{code}: {message}")
        self.code, self.message, self.status, self.more = code, message, status, more


def invalid(message: str) -> Fault:
    """What services say of a request that their model does not allow."""
    return Fault("ValidationException", message)


# -- validation --------------------------------------------------------------------------------------


def check(value: Any, shape: Shape, path: str = "") -> None:
    """Raise a ValidationException unless the value fits the shape, deeply. Timestamps are numbers."""
    kind = shape.type_name
    if kind == "structure":
        _check_structure(value, shape, path)
    elif kind == "list":
        if not isinstance(value, list):
            raise invalid(f"{path} is no list")
        _check_bounds(len(value), shape, path)
        for index, item in enumerate(value):
            check(item, shape.member, f"{path}[{index}]")
    elif kind == "map":
        if not isinstance(value, dict):
            raise invalid(f"{path} is no map")
        for key, item in value.items():
            check(key, shape.key, f"{path} key")
            check(item, shape.value, f"{path}.{key}")
    elif kind == "string":
        _check_string(value, shape, path)
    elif kind in ("integer", "long", "float", "double"):
        wanted = int if kind in ("integer", "long") else (int, float)
        if not isinstance(value, wanted) or isinstance(value, bool):
            raise invalid(f"{path} is no {kind}: {value!r}")
        _check_bounds(value, shape, path)
    elif kind == "boolean" and not isinstance(value, bool):
        raise invalid(f"{path} is no boolean: {value!r}")
    elif kind == "timestamp" and not isinstance(value, (int, float, dt.datetime)):
        raise invalid(f"{path} is no timestamp: {value!r}")


def _check_structure(value: Any, shape: Shape, path: str) -> None:
    if not isinstance(value, dict):
        raise invalid(f"{path} is no structure")
    unknown = set(value) - set(shape.members)
    if unknown:
        raise invalid(f"{path} has unknown members {sorted(unknown)}")
    missing = set(shape.required_members) - set(value)
    if missing:
        raise invalid(f"{path} lacks {sorted(missing)}")
    for name, item in value.items():
        check(item, shape.members[name], f"{path}.{name}" if path else name)


def _check_string(value: Any, shape: Shape, path: str) -> None:
    if not isinstance(value, str):
        raise invalid(f"{path} is no string: {value!r}")
    _check_bounds(len(value), shape, path)
    if shape.enum and value not in shape.enum:
        raise invalid(f"{path}: {value!r} is not one of {shape.enum[:5]}...")
    pattern = shape.metadata.get("pattern")
    if pattern and not any(word in pattern for word in _ANY_CHARACTER):
        python = pattern
        for java, ours in _CLASSES.items():
            python = python.replace(java, ours)
        if re.fullmatch(python, value, re.DOTALL) is None:
            raise invalid(f"{path}: {value!r} does not match {pattern}")


def _check_bounds(size: float, shape: Shape, path: str) -> None:
    low, high = shape.metadata.get("min"), shape.metadata.get("max")
    if low is not None and size < low:
        raise invalid(f"{path} is less than {low}")
    if high is not None and size > high:
        raise invalid(f"{path} is more than {high}")


# -- JSON over HTTP (all but the data plane and S3) ---------------------------------------------------


def from_json(operation: OperationModel, body: bytes) -> dict[str, Any]:
    """A request's members, valid."""
    asked = json.loads(body or b"{}")
    check(asked, operation.input_shape)
    return asked


def to_json(operation: OperationModel, answer: dict[str, Any] | None) -> bytes:
    """An answer's body, refused where a field is not of the output shape."""
    if operation.output_shape is not None:
        check(answer or {}, operation.output_shape)
    elif answer:
        raise AssertionError(f"{operation.name} answers nothing, not {answer}")
    return json.dumps(answer or {}, default=lambda time: time.timestamp()).encode()


# -- REST: the data plane and S3 ----------------------------------------------------------------------


def from_rest(operation: OperationModel, path: dict[str, str], headers: Any, body: bytes) -> dict[str, Any]:
    """A request's members from path, headers and body, valid; headers of the service's own must be known."""
    shape = operation.input_shape
    by_header = {
        member.serialization["name"].lower(): name
        for name, member in shape.members.items()
        if member.serialization.get("location") == "header"
    }
    asked: dict[str, Any] = {**path, shape.serialization["payload"]: body}
    for header, value in headers.items():
        name = by_header.get(header.lower())
        if name is not None:
            asked[name] = value
        elif header.lower().startswith("x-amzn-sagemaker-"):
            raise invalid(f"{header} is no header of {operation.name}")
    check(asked, shape)
    return asked


def to_rest(operation: OperationModel, answer: dict[str, Any]) -> tuple[dict[str, str], bytes]:
    """An answer's headers and body, refused where a field is not of the output shape."""
    shape = operation.output_shape
    check(answer, shape)
    headers = {
        member.serialization["name"]: str(answer[name])
        for name, member in shape.members.items()
        if name in answer and member.serialization.get("location") == "header"
    }
    return headers, answer.get(shape.serialization.get("payload", ""), b"")


def check_xml(element: Any, shape: Shape) -> None:
    """Raise unless every element below this one is a member of the shape, deeply."""
    if shape.type_name == "list":
        check_xml(element, shape.member)
    if shape.type_name != "structure":
        return
    members = {member.serialization.get("name", name): member for name, member in shape.members.items()}
    for child in element:
        tag = child.tag.rpartition("}")[2]
        if tag not in members:
            raise invalid(f"{tag} is no member of {shape.name}")
        check_xml(child, members[tag])


def check_error(service_name: str, fault: Fault) -> None:
    """Raise unless what an error says beside its message is of its shape, where the model has one."""
    shape = service(service_name).shape_for_error_code(fault.code)
    unknown = set(fault.more) - set(shape.members if shape is not None else ())
    if unknown:
        raise AssertionError(f"{fault.code} has no members {sorted(unknown)}")
