"""What every task works on: one endpoint with its policy, platform, journal and registry."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING

from configs.errors import ConfigError
from configs.loading import load_endpoint
from configs.policy import Policy
from configs.settings import Settings
from serving.journal import Journal
from serving.records import EndpointRow, ReleaseRow
from tasks.messenger import Messenger
from tasks.platforms import open_endpoint
from tasks.prompt_registry import PairRegistry
from tasks.registry import Registry
from tasks.runs import Runs

if TYPE_CHECKING:
    from serving.endpoint import Endpoint


def registry_of(policy: Policy, settings: Settings) -> Registry:
    """The registry of the policy's versions: of models, or of pairs of model and prompt."""
    return PairRegistry(settings, policy.prompt.name) if policy.prompt else Registry(settings)


def stored_policy(release: ReleaseRow) -> Policy | None:
    """The policy that a release began under; None for one of long ago, which today's rules refuse."""
    try:
        return Policy.model_validate(release.policy)
    except ValueError:
        return None


class Bench:
    """One endpoint's tools, made once a process. `clock` is seconds since the epoch."""

    def __init__(
        self,
        policy: Policy,
        settings: Settings,
        *,
        endpoint: Endpoint | None = None,
        registry: Registry | None = None,
        runs: Runs | None = None,
        messenger: Messenger | None = None,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._policy = policy
        self.settings = settings
        self.clock = clock
        self.sleep = sleep
        self.registry = registry or registry_of(policy, settings)
        self.runs = runs or Runs(settings.mlflow_url)
        self.messenger = messenger or Messenger(settings, clock)
        self._endpoint = endpoint

    @classmethod
    def open(cls, endpoint: str, settings: Settings | None = None) -> Bench:
        """The bench of an endpoint by its name. Raises `configs.errors.ConfigError`."""
        settings = settings or Settings()
        return cls(load_endpoint(settings, endpoint), settings)

    @classmethod
    def rescue(cls, endpoint: str, settings: Settings) -> Bench:
        """The bench for a way back: a broken policy file must not stand in it.

        An open release's stored policy comes first, then the file, then the newest release's. One that
        was stored long ago, which today's rules refuse, must not stand in it either.
        """
        journal = Journal(settings.journal)
        newest = next(iter(journal.releases(endpoint)), None)
        journal.close()
        stored = stored_policy(newest) if newest is not None else None
        if newest is not None and stored is not None and not newest.state.final:
            return cls(stored, settings)
        try:
            return cls.open(endpoint, settings)
        except ConfigError:
            if stored is None:
                raise
            return cls(stored, settings)

    @property
    def name(self) -> str:
        """The endpoint's name."""
        return self.policy.endpoint

    @property
    def policy(self) -> Policy:
        """The endpoint's policy. With another one the platform's endpoint is opened anew."""
        return self._policy

    @policy.setter
    def policy(self, policy: Policy) -> None:
        self._policy = policy
        self.__dict__.pop("endpoint", None)

    @cached_property
    def journal(self) -> Journal:
        """The journal, opened at first use."""
        return Journal(self.settings.journal)

    @cached_property
    def endpoint(self) -> Endpoint:
        """The platform's endpoint: `platform:` of the policy decides which."""
        if self._endpoint is not None:
            return self._endpoint
        return open_endpoint(self.policy, self.settings, clock=self.clock, sleep=self.sleep)

    def row(self) -> EndpointRow:
        """The endpoint as the journal has it now, made empty where there is none."""
        found = self.journal.endpoint(self.name)
        return found or self.journal.create_endpoint(self.name, now=self.clock())
