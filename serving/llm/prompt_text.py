"""A registered prompt: read from MLflow once, kept by its digest, filled in for each request.

A text prompt is a system message, a chat prompt is messages; `{{name}}` in either is a variable that
the request gives. MLflow's Jinja templates (with `{% ... %}`) are programs, and are refused.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from configs.settings import Settings
from serving.atomic import write_private
from serving.errors import PlatformUnavailable, Refused
from serving.llm.spec import PromptSpec
from serving.upstream import is_loopback, mlflow_headers

_TEXT_TAG = "mlflow.prompt.text"
_KIND_TAG = "_mlflow_prompt_type"
_VARIABLE = re.compile(r"\{\{\s*([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)\s*\}\}", re.ASCII)
_BLOCK = re.compile(r"\{%.*?%\}", re.DOTALL)
_TIMEOUT_S = 10.0


class Unrenderable(Exception):
    """A prompt that cannot be put before a request; the message says why."""


class VariableProblem(Exception):
    """The request's variables are not the prompt's. `variable` is its name, `code` the kind of problem."""

    def __init__(self, message: str, variable: str, code: str) -> None:
        super().__init__(message)
        self.variable = variable
        self.code = code


@dataclass(frozen=True)
class PromptText:
    """A text, or messages as (role, text)."""

    text: str = ""
    messages: tuple[tuple[str, str], ...] = ()

    @property
    def is_chat(self) -> bool:
        """Whether it is a list of messages."""
        return bool(self.messages)

    @cached_property
    def variables(self) -> frozenset[str]:
        """The names that a request has to give."""
        texts = [text for _, text in self.messages] if self.is_chat else [self.text]
        return frozenset(name for text in texts for name in _VARIABLE.findall(text))

    def filled(self, given: Mapping[str, Any]) -> PromptText:
        """With the request's values in place of the variables. Raises `VariableProblem`."""
        for name in given:
            if name not in self.variables:
                known = ", ".join(sorted(self.variables)) or "none"
                message = f"The prompt has no variable `{name}`; it has: {known}."
                raise VariableProblem(message, name, "unknown_prompt_variable")
        for name in sorted(self.variables):
            if name not in given:
                message = f"The prompt's variable `{name}` is missing. Send it in `prompt_variables`."
                raise VariableProblem(message, name, "missing_prompt_variable")
        values = {name: _words(name, value) for name, value in given.items()}

        def fill(text: str) -> str:
            return _VARIABLE.sub(lambda found: values[found[1]], text)

        return PromptText(fill(self.text), tuple((role, fill(text)) for role, text in self.messages))


def parse_prompt(template: str, *, is_chat: bool) -> PromptText:
    """A registered template. Raises `Unrenderable`."""
    if not is_chat:
        _check(template)
        return PromptText(template)
    try:
        listed: object = json.loads(template)
    except ValueError as error:
        raise Unrenderable("it is a chat prompt, but not a list of messages") from error
    if not isinstance(listed, list) or not listed:
        raise Unrenderable("it is a chat prompt without messages")
    return PromptText(messages=tuple(_messages(cast("list[object]", listed))))


def _messages(listed: list[object]) -> Iterator[tuple[str, str]]:
    for number, one in enumerate(listed, start=1):
        fields = cast("dict[str, object]", one) if isinstance(one, dict) else {}
        role, content = fields.get("role"), fields.get("content")
        if not isinstance(role, str) or not isinstance(content, str):
            raise Unrenderable(f"message {number} needs a role and a text as its content")
        if set(fields) - {"role", "content"}:
            raise Unrenderable(f"message {number} has more than role and content")
        _check(content)
        yield role, content


def _check(text: str) -> None:
    if not text.strip():
        raise Unrenderable("it is empty")
    if block := _BLOCK.search(text):
        raise Unrenderable(
            f"it is a Jinja template ({block[0][:40]!r}); only {{{{variables}}}} are filled in"
        )
    left = _VARIABLE.sub("", text)
    if "{{" in left:
        near = left[left.index("{{") :][:40]
        raise Unrenderable(f"{near!r} is no variable: write {{{{name}}}}, of letters, digits, _ and dots")


def _words(name: str, value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    message = f"The prompt's variable `{name}` must be a text or a number."
    raise VariableProblem(message, name, "invalid_prompt_variable")


def fetch_prompt(settings: Settings, name: str, version: str, *, held_digest: str = "") -> PromptSpec:
    """The local copy of a version, which is written where it is not there yet.

    `held_digest` is what a slot was given before: its copy is taken as it is, and no registry is asked.
    The last answer is taken while MLflow does not answer. Raises `Refused` for a version that does not
    exist or cannot be filled in, `PlatformUnavailable` where there is neither answer nor copy.
    """
    folder = settings.state / "prompts"
    if held_digest and _copy(folder, held_digest).exists():
        return PromptSpec(name=name, version=version, digest=held_digest, file=_copy(folder, held_digest))
    key = hashlib.sha256(f"{settings.mlflow_url} {name} {version}".encode()).hexdigest()[:24]
    note = folder / f"{key}.digest"
    try:
        document = _ask(settings, name, version)
    except PlatformUnavailable:
        digest = note.read_text() if note.exists() else ""
        if not digest or not _copy(folder, digest).exists():
            raise
        return PromptSpec(name=name, version=version, digest=digest, file=_copy(folder, digest))
    try:
        parse_prompt(document["template"], is_chat=document["kind"] == "chat")
    except Unrenderable as error:
        raise Refused(
            f"Prompt {name} version {version} cannot be put before a model: {error}. "
            "Next: register a corrected version"
        ) from error
    text = json.dumps(document, sort_keys=True, ensure_ascii=False)
    digest = hashlib.sha256(text.encode()).hexdigest()
    write_private(_copy(folder, digest), text)
    write_private(note, digest)
    return PromptSpec(name=name, version=version, digest=digest, file=_copy(folder, digest))


def read_prompt(spec: PromptSpec) -> PromptText:
    """The prompt of a spec. Raises `Unrenderable` for a copy that is not what was recorded."""
    try:
        text = spec.file.read_text()
    except OSError as error:
        raise Unrenderable(f"{spec.file} cannot be read: {error.strerror}") from error
    if hashlib.sha256(text.encode()).hexdigest() != spec.digest:
        raise Unrenderable(f"{spec.file} is not the text that was recorded")
    document = json.loads(text)
    return parse_prompt(document["template"], is_chat=document["kind"] == "chat")


def _copy(folder: Path, digest: str) -> Path:
    return folder / f"{digest}.json"


def _ask(settings: Settings, name: str, version: str) -> dict[str, str]:
    """Template and kind as MLflow has them: prompts are registered models whose text is a tag."""
    import httpx

    url = f"{settings.mlflow_url.rstrip('/')}/api/2.0/mlflow/model-versions/get"
    try:
        reply = httpx.get(
            url,
            params={"name": name, "version": version},
            headers=mlflow_headers(),
            timeout=_TIMEOUT_S,
            trust_env=not is_loopback(url),
        )
    except httpx.HTTPError as error:
        raise PlatformUnavailable(
            f"MLflow at {settings.mlflow_url} does not answer ({type(error).__name__}), and there is no "
            f"local copy of prompt {name} version {version}. Next: interlock doctor"
        ) from error
    if reply.is_server_error:
        raise PlatformUnavailable(f"MLflow answered {reply.status_code} for prompt {name} version {version}")
    listed = reply.json()["model_version"].get("tags", []) if reply.is_success else []
    tags = {one["key"]: one["value"] for one in listed}
    if _TEXT_TAG not in tags:
        raise Refused(
            f"MLflow at {settings.mlflow_url} has no prompt {name} version {version} "
            f"({reply.status_code}). Next: mlflow.genai.register_prompt, or correct `prompt.name`"
        )
    return {"template": tags[_TEXT_TAG], "kind": tags.get(_KIND_TAG, "text")}
