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

_KINDS = {
    "list": ("a list of sections", "[]."),
    "mapping": ("sections by name", ".NAME."),
    "section": ("a section", "."),
}
"""What a key with sections takes, and what stands between its path and theirs."""


@dataclass(frozen=True, slots=True)
class PolicyKey:
    """One key: its full path, what it takes, what it is when left out, and what it means."""

    path: str
    takes: str
    default: str
    description: str
    is_section: bool


def policy_keys(model: type[BaseModel] = Policy, prefix: str = "", case: str = "") -> Iterator[PolicyKey]:
    """Every key of the policy in the order of the file, a section before its keys.

    Where a section has several forms (`evaluation` by its `task`) all are listed one after another; the
    keys of later forms say in their description (`case`) which one they belong to.
    """
    for name, info in model.model_fields.items():
        path = f"{prefix}{name}"
        sections = sections_of(info.annotation)
        takes, inner = _KINDS[_kind(info.annotation)]
        yield PolicyKey(
            path,
            takes if sections else _takes(info),
            _default(info, bool(sections)),
            f"{case}{info.description or ''}",
            bool(sections),
        )
        for form, section in enumerate(sections):
            kinds = f"With {info.discriminator} {' or '.join(_tags(section, info))}: " if form else case
            yield from policy_keys(section, f"{path}{inner}", kinds)


def section_at(location: Sequence[str | int], model: type[BaseModel] = Policy) -> type[BaseModel] | None:
    """The section's type at a place such as ("evaluation", "classification", "metrics", 0); None without one.

    A place is pydantic's: after a key whose section has several forms stands the tag of the form.
    """
    return _walk(location, model)[1]


def without_tags(location: Sequence[str | int], model: type[BaseModel] = Policy) -> tuple[str | int, ...]:
    """A place of pydantic's as it is in the file: without the tags of forms."""
    return _walk(location, model)[0]


def _walk(
    location: Sequence[str | int], model: type[BaseModel]
) -> tuple[tuple[str | int, ...], type[BaseModel] | None]:
    current: type[BaseModel] | None = model
    plain: list[str | int] = []
    forms: dict[str, type[BaseModel]] = {}
    is_name = False
    for part in location:
        if part in forms:
            current, forms = forms[str(part)], {}
            continue
        plain.append(part)
        if isinstance(part, int) or is_name:
            is_name = False
            continue
        info = current.model_fields.get(part) if current else None
        sections = sections_of(info.annotation) if info else ()
        current = sections[0] if sections else None
        is_name = info is not None and bool(sections) and _kind(info.annotation) == "mapping"
        forms = {tag: one for one in sections for tag in _tags(one, info)} if len(sections) > 1 else {}
    return tuple(plain), current


def _tags(section: type[BaseModel], info: FieldInfo | None) -> tuple[str, ...]:
    """The values of the discriminating key by which a section's form is chosen."""
    field = section.model_fields.get(str(info.discriminator)) if info else None
    return tuple(map(str, get_args(field.annotation))) if field else ()


def nearest_key(location: Sequence[str | int]) -> str | None:
    """The valid key that an unknown one probably means: first in its own section, then anywhere."""
    unknown = str(location[-1])
    section = section_at(location[:-1])
    own = difflib.get_close_matches(unknown, section.model_fields if section else (), n=1, cutoff=0.6)
    if own:
        return key_path((*without_tags(location[:-1]), own[0]))
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


def sections_of(annotation: Any) -> tuple[type[BaseModel], ...]:
    """The sections' types inside `Section`, `Section | None`, `One | Other` or `tuple[Section, ...]`."""
    if isinstance(annotation, type) and not get_origin(annotation):
        return (annotation,) if issubclass(annotation, BaseModel) else ()
    return tuple(found for inner in get_args(annotation) for found in sections_of(inner))


def is_list(annotation: Any) -> bool:
    """Whether the key takes a list."""
    return get_origin(annotation) in (tuple, list)


def _kind(annotation: Any) -> Literal["list", "mapping", "section"]:
    """How sections of this annotation come: several in order, several by name, or one."""
    if is_list(annotation):
        return "list"
    return "mapping" if get_origin(annotation) is dict else "section"


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
