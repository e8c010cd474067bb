"""Reads policy files, and says everything that is wrong with one at once, in an operator's words."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from configs.environments import OVERLAYS, Overlay, policy_in
from configs.errors import (
    PolicyError,
    PolicyInvalid,
    PolicyNotFound,
    PolicySyntaxError,
    Problem,
    SettingsInvalid,
)
from configs.keys import key_path, nearest_key, section_at, without_tags
from configs.policy import Policy
from configs.section import NAME_PATTERN, URL_PATTERN, VARIABLE_PATTERN
from configs.settings import Settings

_LOOK = "interlock policy-keys prints every key; interlock validate checks the file again"
_FILE_BYTES_MAX = 1_000_000
_PATTERNS = {
    NAME_PATTERN: "must start with a lowercase letter and go on with lowercase letters, digits and dashes, "
    "40 in all at most",
    URL_PATTERN: "must start with http:// or https://",
    VARIABLE_PATTERN: "must be the name of an environment variable: letters, digits and _",
}
"""What a text must be like, in words."""


def load_policy(path: Path) -> Policy:
    """The policy in a file.

    Raises PolicyNotFound, PolicySyntaxError, or PolicyInvalid with every problem and its line.
    """
    text = _read(path)
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        content: object = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise PolicySyntaxError(
            path, (_syntax_problem(error),), "mend the line; indent with spaces"
        ) from error
    except RecursionError as error:
        raise PolicySyntaxError(path, (Problem("", "it is nested too deeply"),), "flatten it") from error
    except ValueError as error:  # a date such as 2013-02-31
        raise PolicySyntaxError(path, (Problem("", f"not YAML: {error}"),), "put it in quotes") from error
    if root is None or not isinstance(content, dict):
        problem = Problem("", f"a policy is a list of 'key: value' lines, this is {_kind(content)}")
        raise PolicyInvalid(path, (problem,), _LOOK)
    problems = list(_repeated_keys(root))
    try:
        policy = Policy.model_validate(content)
    except ValidationError as error:
        for details in error.errors(include_url=False):
            problems += _problems(details, root)
        if not any(problem.key == "endpoint" for problem in problems):
            problems += _stem_problem(path, cast("Mapping[str, Any]", content), root)
        raise PolicyInvalid(path, _in_order(problems), _LOOK) from error
    problems += _stem_problem(path, cast("Mapping[str, Any]", content), root)
    problems += _overlay_problems(policy, root)
    if problems:
        raise PolicyInvalid(path, _in_order(problems), _LOOK)
    return policy


def load_endpoint(settings: Settings, endpoint: str) -> Policy:
    """The policy of an endpoint by its name: a file of its own, or an environment of another one's.

    Raises as `load_policy` does.
    """
    overlaid = _overlaid(settings, endpoint)
    return policy_in(*overlaid) if overlaid else load_policy(settings.policy_path(endpoint))


def production_of(settings: Settings, endpoint: str) -> str:
    """The endpoint in whose policy file this one is an environment; without such a file, itself.

    Raises as `load_policy` does.
    """
    overlaid = _overlaid(settings, endpoint)
    return overlaid[0].endpoint if overlaid else endpoint


def _overlaid(settings: Settings, endpoint: str) -> tuple[Policy, Overlay] | None:
    """The policy and the environment that an endpoint's name means; None where it has a file of its own."""
    for environment in () if settings.policy_path(endpoint).exists() else OVERLAYS:
        name = endpoint.removesuffix(f"-{environment}")
        if name != endpoint and settings.policy_path(name).exists():
            policy = load_policy(settings.policy_path(name))
            if environment in policy.environments:
                return policy, environment
    return None


def load_policies(folder: Path) -> tuple[dict[str, Policy], list[PolicyError]]:
    """All policies of a folder by endpoint, and the errors of the files that are none.

    One broken file must not stop the other endpoints; a missing folder is an empty one.
    """
    policies: dict[str, Policy] = {}
    errors: list[PolicyError] = []
    for path in sorted(folder.glob("*.yaml")):
        try:
            policies[path.stem] = load_policy(path)
        except PolicyError as error:
            errors.append(error)
    return policies, errors


def load_settings() -> Settings:
    """The settings of this process. Raises SettingsInvalid that names each variable."""
    try:
        return Settings()
    except ValidationError as error:
        said = [
            f"INTERLOCK_{str(details['loc'][0]).upper()} {_say(details, tuple(details['loc']))}"
            for details in error.errors(include_url=False)
        ]
        raise SettingsInvalid(f"{'; '.join(said)}. Next: mend the variable, or configs/local.yaml") from error


def unknown_variables(environment: Mapping[str, str]) -> dict[str, str | None]:
    """INTERLOCK_* variables that name no setting, each with the nearest that does: typing errors."""
    known = {f"INTERLOCK_{name.upper()}" for name in Settings.model_fields} | {"INTERLOCK_STACK"}
    unknown = [name for name in environment if name.startswith("INTERLOCK_") and name not in known]
    found: dict[str, str | None] = {}
    for name in unknown:
        if not name.startswith(("INTERLOCK_SECRET_", "INTERLOCK_DEPLOY_")):
            found[name] = next(iter(difflib.get_close_matches(name, known, n=1)), None)
    return found


def _read(path: Path) -> str:
    try:
        if path.exists() and not path.is_file():
            reason = Problem("", "it is a folder" if path.is_dir() else "it is no file")
            raise PolicyNotFound(path, (reason,), "name the file: ENDPOINT.yaml")
        if path.stat().st_size > _FILE_BYTES_MAX:
            raise PolicyInvalid(path, (Problem("", "it is larger than 1 MB"),), "check the file name")
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise PolicySyntaxError(path, (Problem("", "it is not UTF-8 text"),), "save it as UTF-8") from error
    except OSError as error:
        files = [other.name for other in path.parent.glob("*.yaml") if other.is_file()]
        near = difflib.get_close_matches(path.name, files, n=1)
        hint = f"; did you mean {path.with_name(near[0])}?" if near else ""
        reason = Problem("", f"{(error.strerror or str(error)).lower()}{hint}")
        raise PolicyNotFound(path, (reason,), "check the path, or set INTERLOCK_POLICY_DIR") from error


def _syntax_problem(error: yaml.YAMLError) -> Problem:
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        said = " ".join(filter(None, (error.context, error.problem)))
        return Problem("", f"not YAML: {said}", mark.line + 1 if mark else None)
    return Problem("", f"not YAML: {' '.join(str(error).split())}")


def _repeated_keys(
    node: yaml.Node, location: tuple[str | int, ...] = (), seen: set[int] | None = None
) -> Iterator[Problem]:
    """YAML itself lets the last of several equal keys win, silently. `seen`: aliases may lead in a circle."""
    seen = set() if seen is None else seen
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        first_line: dict[str, int] = {}
        for key, value in _pairs(node):
            line = key.start_mark.line + 1
            here = (*location, str(key.value))
            if here[-1] in first_line:
                yield Problem(key_path(here), f"is given twice, first in line {first_line[here[-1]]}", line)
            first_line.setdefault(here[-1], line)
            yield from _repeated_keys(value, here, seen)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(cast("list[yaml.Node]", node.value)):
            yield from _repeated_keys(item, (*location, index), seen)


def _stem_problem(path: Path, content: Mapping[str, Any], root: yaml.Node) -> Iterator[Problem]:
    endpoint = content.get("endpoint")
    if isinstance(endpoint, str) and endpoint != path.stem:
        text = f"is '{endpoint}', but the file is called {path.name}: name the file {endpoint}.yaml"
        yield Problem("endpoint", text, _line(root, ("endpoint",)))


def _overlay_problems(policy: Policy, root: yaml.Node) -> Iterator[Problem]:
    """What is wrong with the environments: each overlay with the file must make a whole policy."""
    for environment in policy.environments:
        place = ("environments", environment)
        own = {"endpoint", "model", "environments"} & set(policy.environments[environment])
        for key in sorted(own):
            text = "is the same in every environment: leave it out"
            yield Problem(key_path((*place, key)), text, _line(root, (*place, key)))
        if own:
            continue
        try:
            policy_in(policy, environment)
        except ValidationError as error:
            for details in error.errors(include_url=False):
                yield from _problems(details, root, place)


def _problems(
    details: ErrorDetails, root: yaml.Node, inside: tuple[str | int, ...] = ()
) -> Iterator[Problem]:
    """pydantic's finding as one problem, or as several that a section found at once (a line each)."""
    location = tuple(details["loc"])
    if details["type"] == "too_short" and len(details["input"]) >= details.get("ctx", {})["min_length"]:
        return  # it counts the members that are right; what is wrong with the others is said by itself
    if details["type"] in ("union_tag_invalid", "union_tag_not_found"):
        location = (*location, str(details.get("ctx", {})["discriminator"]).strip("'"))
    place = (*inside, *without_tags(tuple(part for part in location if part != "[key]")))
    for said in _say(details, location).splitlines():
        yield Problem(key_path(place), said, _line(root, place))


def _say(details: ErrorDetails, location: tuple[str | int, ...]) -> str:
    """pydantic's finding in an operator's words; its own words where we have none."""
    given = details["input"]
    bounds = details.get("ctx", {})
    match details["type"]:
        case "missing":
            return f"is required: {_description(location)}"
        case "extra_forbidden":
            near = nearest_key(location)
            return "is not a key" + (f"; the nearest is '{near}'" if near else "")
        case "literal_error":
            expected = str(bounds["expected"])
            return f"must be one of {expected}, not {given!r}{_near_literal(given, expected)}"
        case "union_tag_invalid":
            tag, expected = bounds["tag"], str(bounds["expected_tags"])
            return f"must be one of {expected}, not {tag!r}{_near_literal(tag, expected)}"
        case "union_tag_not_found":
            return "is required: it says which keys its section has"
        case "string_pattern_mismatch":
            found = "" if str(location[-1]).startswith("key") else f"; it is {given!r}"  # perhaps a secret
            return f"{_PATTERNS.get(bounds['pattern']) or _like(location, bounds['pattern'])}{found}"
        case "greater_than" | "greater_than_equal" | "less_than" | "less_than_equal" as kind:
            words = {"greater_than": "above", "greater_than_equal": "at least", "less_than": "below"}
            bound = next(iter(bounds.values()))
            return f"must be {words.get(kind, 'at most')} {bound}, it is {given}"
        case "too_short" | "string_too_short":
            return "must not be empty"
        case "value_error":
            return "\n".join(f"does not fit: {line}" for line in str(bounds["error"]).splitlines())
        case "finite_number":
            return f"must be a finite number, it is {given}"
        case "invalid_key":
            return "is not a key: keys are text"
        case "model_type" | "model_attributes_type":
            return f"must be a section ('key: value' lines), it is {_kind(given)}"
        case kind if kind.endswith(("_parsing", "_type", "_from_float")):
            return f"must be {_expected(kind)}, it is {_kind(given)}"
        case _:
            return f"{details['msg'][0].lower()}{details['msg'][1:]} (it is {given!r})"


def _expected(kind: str) -> str:
    words = {
        "int": "a whole number",
        "float": "a number",
        "bool": "true or false",
        "string": "text",
        "dict": "a section ('key: value' lines)",
    }
    return words.get(kind.partition("_")[0], "a list")


def _like(location: tuple[str | int, ...], pattern: str) -> str:
    about = _description(location).rstrip(".")
    return f"must be like {pattern}" + (f" ({about})" if about else "")


def _near_literal(given: object, expected: str) -> str:
    choices = [part.strip(" '") for part in expected.replace(" or ", ",").split(",")]
    near = difflib.get_close_matches(str(given), choices, n=1)
    return f"; the nearest is '{near[0]}'" if near else ""


def _description(location: tuple[str | int, ...]) -> str:
    section = section_at(location[:-1])
    info = section.model_fields.get(str(location[-1])) if section else None
    return (info.description or "") if info else ""


def _kind(value: object) -> str:
    if value is None:
        return "empty"
    if isinstance(value, dict):
        return "a section"
    if isinstance(value, list | tuple):
        return "a list"
    return repr(value)


def _line(root: yaml.Node, location: Sequence[str | int]) -> int | None:
    """The line of a key, or of the nearest enclosing one that is in the file."""
    node: yaml.Node = root
    line = 1
    for part in location:
        if isinstance(node, yaml.MappingNode):
            found = [(key, value) for key, value in _pairs(node) if key.value == part]
            if not found:
                break
            line, node = found[-1][0].start_mark.line + 1, found[-1][1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            break
    return line


def _pairs(node: yaml.MappingNode) -> list[tuple[yaml.Node, yaml.Node]]:
    return cast("list[tuple[yaml.Node, yaml.Node]]", node.value)


def _in_order(problems: list[Problem]) -> tuple[Problem, ...]:
    return tuple(sorted(problems, key=lambda problem: problem.line or 0))
