"""MLflow's registry, as far as releases use it: versions, aliases, tags.

Aliases are a projection of the journal: they are set after traffic has moved, and only
`candidate` is ever an input. Each effect reads first, so that repeating it is free. Spoken over
REST: a rollback must not wait five seconds for the import of MLflow's client.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from configs.settings import Settings
from serving.errors import Refused
from tasks.rest import mlflow_api

CHAMPION = "champion"
CANDIDATE = "candidate"
PREVIOUS = "previous"
_USER_TAG = "mlflow.user"


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """A registered version: where its model is, and what it said of itself."""

    model: str
    version: str
    run_id: str
    tags: Mapping[str, str]

    @property
    def uri(self) -> str:
        """`models:/name/version`."""
        return f"models:/{self.model}/{self.version}"


class Registry:
    """The verbs that a release needs. All can be repeated.

    They raise `tasks.rest.ServerUnavailable` (try again) or `Refused`.
    """

    def __init__(self, settings: Settings) -> None:
        self._api = mlflow_api(settings)

    def version(self, model: str, version: str) -> ModelVersion:
        """A registered version. Raises `Refused` where there is none."""
        found = self._api.call(
            "GET", f"/model-versions/get?name={quote(model)}&version={quote(version)}", missing_ok=True
        )
        if found is None:
            raise Refused(
                f"model {model} has no version {version} at {self._api.url}. Next: register it, or correct "
                "`model` in the policy"
            )
        data = found["model_version"]
        tags = {str(tag["key"]): str(tag.get("value", "")) for tag in data.get("tags", ())}
        return ModelVersion(model, str(data["version"]), str(data.get("run_id", "")), tags)

    def registrants(self, model: str, version: str) -> list[str]:
        """Who made a version, as far as MLflow knows: the users of the version and of its run."""
        found = self._api.call("GET", f"/model-versions/get?name={quote(model)}&version={quote(version)}")
        data = found["model_version"]
        names = [data.get("user_id"), *_user_tags(data)]
        if data.get("run_id"):
            run = self._api.call("GET", f"/runs/get?run_id={quote(data['run_id'])}", missing_ok=True)
            if run is not None:
                names += [run["run"]["info"].get("user_id"), *_user_tags(run["run"].get("data", {}))]
        return sorted({str(name) for name in names if name})

    def aliased(self, model: str, alias: str) -> str:
        """The version that an alias names, "" where it names none or the model is not registered."""
        found = self._api.call("GET", f"/registered-models/get?name={quote(model)}", missing_ok=True)
        aliases = found["registered_model"].get("aliases", ()) if found else ()
        return next((str(one["version"]) for one in aliases if one["alias"] == alias), "")

    def point(self, model: str, alias: str, version: str) -> None:
        """Make an alias name a version."""
        if self.aliased(model, alias) != version:
            body = {"name": model, "alias": alias, "version": version}
            self._api.call("POST", "/registered-models/alias", body, repeatable=True)

    def unpoint(self, model: str, alias: str, version: str) -> None:
        """Remove an alias if it still names this version; somebody's newer choice stays."""
        if self.aliased(model, alias) == version:
            self._api.call(
                "DELETE", "/registered-models/alias", {"name": model, "alias": alias}, missing_ok=True
            )

    def tag(self, model: str, version: str, tags: Mapping[str, str]) -> None:
        """Set tags of a version."""
        for key, value in tags.items():
            body = {"name": model, "version": version, "key": key, "value": value[:4000]}
            self._api.call("POST", "/model-versions/set-tag", body, repeatable=True)


def _user_tags(data: Mapping[str, Any]) -> list[str]:
    return [str(tag.get("value", "")) for tag in data.get("tags", ()) if tag["key"] == _USER_TAG]
