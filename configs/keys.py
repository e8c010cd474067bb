"""The policy's keys, read off the types: for the documentation, and to name the nearest valid key."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from configs.policy import Policy


@dataclass(frozen=True, slots=True)
class PolicyKey:
    """One key: its full path, what it takes, what it is when left out, and what it means."""

    path: str
    takes: str
    default: str
    description: str
    is_section: bool


def policy_keys(model: type[BaseModel] = Policy, prefix: str = "") -> Iterator[PolicyKey]:
    """Every key of the policy in the order of the file, a section before its keys."""
    for name, info in model.model_fields.items():
        path = f"{prefix}{name}"
        section = section_of(info.annotation)
        takes = "a list of sections" if is_list(info.annotation) else "a section"
        yield PolicyKey(
            path,
            takes if section else _takes(info),
            _default(info, section is not None),
            info.description or "",
            section is not None,
        )
        if section is not None:
            yield from policy_keys(section, f"{path}[]." if is_list(info.annotation) else f"{path}.")


def section_at(location: Sequence[str | int], model: type[BaseModel] = Policy) -> type[BaseModel] | None:
    """The section's type at a place such as ("evaluation", "metrics", 0); None where there is none."""
    current: type[BaseModel] | None = model
    for part in location:
        if isinstance(part, int):
            continue
        info = current.model_fields.get(part) if current else None
        current = section_of(info.annotation) if info else None
    return current


def nearest_key(location: Sequence[str | int]) -> str | None:
    """The valid key that an unknown one probably means: first in its own section, then anywhere."""
    unknown = str(location[-1])
    section = section_at(location[:-1])
    own = difflib.get_close_matches(unknown, section.model_fields if section else (), n=1, cutoff=0.6)
    if own:
        return key_path((*location[:-1], own[0]))
    by_name: dict[str, str] = {}
    for key in policy_keys():
        by_name.setdefault(key.path.rpartition(".")[2], key.path)
    anywhere = difflib.get_close_matches(unknown, by_name, n=1, cutoff=0.8)
    return by_name[anywhere[0]] if anywhere else None


def key_path(location: Sequence[str | int]) -> str:
    """("evaluation", "metrics", 0, "name") as evaluation.metrics[0].name."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The section's type inside `Section`, `Section | None` or `tuple[Section, ...]`."""
    if isinstance(annotation, type) and not get_origin(annotation):
        return annotation if issubclass(annotation, BaseModel) else None
    for inner in get_args(annotation):
        found = section_of(inner)
        if found is not None:
            return found
    return None


def is_list(annotation: Any) -> bool:
    """Whether the key takes a list."""
    return get_origin(annotation) in (tuple, list)


def _takes(info: FieldInfo) -> str:
    limits = [text for text in (_limit(bound) for bound in info.metadata) if text]
    if info.annotation is str and limits:
        limits = ["not empty"]
    return ", ".join((_words(info.annotation), *limits))


def _words(annotation: Any) -> str:
    origin = get_origin(annotation)
    if origin is Annotated:
        return _words(get_args(annotation)[0])
    if origin is Literal:
        return " or ".join(str(value) for value in get_args(annotation))
    if origin in (Union, types.UnionType):
        return " or ".join(_words(inner) for inner in get_args(annotation))
    if origin is dict:
        key, value = (_words(inner) for inner in get_args(annotation))
        return f"a mapping of {key} to {value}"
    if is_list(annotation):
        return f"a list of: {_words(get_args(annotation)[0])}"
    plain = {str: "text", int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}
    return plain.get(cast("type", annotation), str(annotation))


def _limit(bound: object) -> str:
    match bound:
        case Gt():
            return f"above {bound.gt}"
        case Ge():
            return f"at least {bound.ge}"
        case Lt():
            return f"below {bound.lt}"
        case Le():
            return f"at most {bound.le}"
        case MinLen():
            return f"at least {bound.min_length} entry"
        case _:
            return ""


def _default(info: FieldInfo, is_section: bool) -> str:
    if info.is_required():
        return "required"
    if is_section and info.default is PydanticUndefined:
        return "as its keys say"
    value: object = info.get_default(call_default_factory=True, validated_data={})
    if value is None:
        return "none"
    if isinstance(value, tuple):
        return "[" + ", ".join(str(item) for item in cast("tuple[object, ...]", value)) + "]"
    return str(value).lower() if isinstance(value, bool) else str(value)
