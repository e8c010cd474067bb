"""The registry of an endpoint whose versions are pairs of model and prompt.

The same verbs as `tasks.registry.Registry`, on two registered names: an alias of the pair is the
same alias on both. MLflow keeps prompts as registered models of a kind of their own, so one REST
API serves both.
"""

from __future__ import annotations

from collections.abc import Mapping

from configs.settings import Settings
from serving.errors import Refused
from serving.versions import Pair
from tasks.registry import CANDIDATE, CHAMPION, PREVIOUS, ModelVersion, Registry


class PairRegistry(Registry):
    """Aliases, tags and versions of pairs."""

    def __init__(self, settings: Settings, prompt: str) -> None:
        super().__init__(settings)
        self._prompt = prompt
        self.parts = Registry(settings)

    def version(self, model: str, version: str) -> ModelVersion:
        """The model's version of a pair; refuses a pair whose prompt does not exist."""
        pair = Pair.of(version)
        if pair.prompt:
            super().version(self._prompt, pair.prompt)
        return super().version(model, pair.model)

    def registrants(self, model: str, version: str) -> list[str]:
        """Who made either part."""
        pair = Pair.of(version)
        of_prompt = super().registrants(self._prompt, pair.prompt) if pair.prompt else []
        return sorted({*super().registrants(model, pair.model), *of_prompt})

    def aliased(self, model: str, alias: str) -> str:
        """The pair that an alias names on either part; what it does not name is the champion's."""
        of_model, of_prompt = super().aliased(model, alias), super().aliased(self._prompt, alias)
        if not of_model and not of_prompt:
            return ""
        of_model = of_model or super().aliased(model, CHAMPION)
        of_prompt = of_prompt or super().aliased(self._prompt, CHAMPION)
        return str(Pair(of_model, of_prompt)) if of_model and of_prompt else ""

    def point(self, model: str, alias: str, version: str) -> None:
        """Make an alias name both parts."""
        pair = Pair.of(version)
        super().point(model, alias, pair.model)
        if pair.prompt:
            super().point(self._prompt, alias, pair.prompt)

    def unpoint(self, model: str, alias: str, version: str) -> None:
        """Remove an alias from each part that it still names."""
        pair = Pair.of(version)
        for name, part in ((model, pair.model), (self._prompt, pair.prompt)):
            if part and super().aliased(name, alias) == part:
                self._api.call(
                    "DELETE", "/registered-models/alias", {"name": name, "alias": alias}, missing_ok=True
                )

    def tag(self, model: str, version: str, tags: Mapping[str, str]) -> None:
        """Tag the part that the release was about: what a good pair and a bad one share is not to blame."""
        pair = Pair.of(version)
        champion = self.aliased(model, CHAMPION)
        other = Pair.of(self.aliased(model, PREVIOUS) if champion == version else champion)
        about_model = pair.model != other.model
        about_prompt = bool(pair.prompt) and pair.prompt != other.prompt
        if about_model or not about_prompt:
            super().tag(model, pair.model, tags)
        if about_prompt:
            super().tag(self._prompt, pair.prompt, tags)


def subject(registry: Registry, *, model: str, prompt: str | None, asked: str, champion: str) -> str:
    """The whole version that a release is about: what was not asked for stays as the champion has it.

    An endpoint's first release takes the missing part from the aliases `champion`, else `candidate`.
    Raises Refused where that leaves a part open, and for a prompt where the policy has none.
    """
    try:
        pair = Pair.read(asked)
    except ValueError as error:
        raise Refused(f"{error}") from error
    if prompt is None:
        if pair.prompt:
            raise Refused(
                f"version {asked} names a prompt, but the policy has none. Next: add `prompt` to the policy"
            )
        return asked
    serving = Pair.of(champion)
    plain = registry if not isinstance(registry, PairRegistry) else registry.parts
    of_model = pair.model or serving.model or _aliased(plain, model)
    of_prompt = pair.prompt or serving.prompt or _aliased(plain, prompt)
    if not of_model or not of_prompt:
        what = f"model {model}" if not of_model else f"prompt {prompt}"
        raise Refused(
            f"version {asked} leaves the {what} open, and no alias champion or candidate names one. "
            "Next: set the alias candidate on it, or ask for a pair such as 3+p2"
        )
    return str(Pair(of_model, of_prompt))


def _aliased(registry: Registry, name: str) -> str:
    return registry.aliased(name, CHAMPION) or registry.aliased(name, CANDIDATE)
