"""How our notions are spelled in SageMaker's: variants, tags, models.

A variant is named after its slot and version, so that metrics of two versions never share a name. The route
that was asked for stands in one tag of the endpoint, whole: a tag is written at once or not at all.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

from serving.endpoint import Route, Slot
from serving.errors import SetupError

ROUTE_TAG = "interlock:route"
ENDPOINT_TAG = "interlock:endpoint"
_VARIANT = re.compile(r"(blue|green)-v([A-Za-z0-9-]+)")


def variant_name(slot: Slot, version: str) -> str:
    """The variant of a version in a slot."""
    return f"{slot.value}-v{version}"


def of_variant(name: str) -> tuple[Slot, str] | None:
    """Slot and version of a variant; None for one that is not ours."""
    found = _VARIANT.fullmatch(name)
    return (Slot(found[1]), found[2]) if found else None


def digest(content: object) -> str:
    """A short name for plain values: the same content has the same name."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def content_name(endpoint: str, kind: str, content: dict[str, Any]) -> str:
    """Name of a model or configuration by what is in it: made twice it is the same. At most 63 characters."""
    return f"{endpoint}-{kind}-{digest(content)}"


def route_text(route: Route) -> str:
    """A route as a tag's value: 256 characters of letters, digits and _.:/=+-@."""
    parts = {
        "g": route.generation,
        "d": route.default.value,
        "dv": route.default_version,
        "ov": route.other_version,
        "salt": route.salt,
        "share": route.share_bp,
        "until": route.until,
    }
    return "/".join(f"{name}={value}" for name, value in parts.items())


def route_of(endpoint: str, text: str) -> Route:
    """The inverse of `route_text`. Raises `SetupError` for a tag that somebody else wrote."""
    try:
        parts = dict(part.split("=", 1) for part in text.split("/"))
        return Route(
            endpoint=endpoint,
            generation=int(parts["g"]),
            default=Slot(parts["d"]),
            default_version=parts["dv"],
            other_version=parts["ov"],
            salt=parts["salt"],
            share_bp=int(parts["share"]),
            until=float(parts["until"]),
        )
    except (ValueError, KeyError) as error:
        raise SetupError(
            f"{endpoint}: its tag {ROUTE_TAG} is not ours: {text!r}. Next: interlock status {endpoint}; "
            "remove the tag, then interlock resume"
        ) from error
