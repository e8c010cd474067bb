"""What runs inside a replica: MLflow's pyfunc, a vLLM server of its own, or a provider's API.

`runtime` is what a version is served by unless the version itself says otherwise (in its MLmodel's
metadata, `interlock: {runtime: api}`): so moving from a provider to one's own GPUs is a release like
any other. Both sections may then be there at once.
"""

from __future__ import annotations

import math
import re
from typing import Any, Literal, cast

from pydantic import Field, field_validator, model_validator

from configs.guards import Guards
from configs.section import URL_PATTERN, VARIABLE_PATTERN, Section, Text

Runtime = Literal["pyfunc", "vllm", "api"]
Provider = Literal["openai", "anthropic", "vertex", "bedrock", "compatible"]
_BLOCKED, _CUT_SHORT = "content_filter", "length"
_NO_GAUGES = "disable-log-stats"
_PARALLEL = ("pipeline-parallel-size", "data-parallel-size")
_OPTION = re.compile(r"[a-z][a-z0-9_.-]*")
_OWN_OPTIONS = {
    "model": "a version names its weights",
    "revision": "a version names its weights",
    "host": "each replica is told its own",
    "port": "each replica is told its own",
    "uds": "each replica is told its own port",
    "root-path": "the gateway knows the paths",
    "ssl-keyfile": "TLS is the gateway's",
    "ssl-certfile": "TLS is the gateway's",
    "api-key": "the gateway checks keys (access)",
    "middleware": "the capture stands there",
    "served-model-name": "use serving.served_name",
    "tensor-parallel-size": "use serving.vllm.tensor_parallel",
    "lora-modules": "use serving.vllm.lora",
}
"""Options of vLLM that are not the operator's to set, or have a key of their own that more depends on."""


class Vllm(Section):
    """vLLM's own server, from its own environment: it pins too much to share ours."""

    environment: Text = Field(
        default=".venv-vllm",
        description="Folder of the virtual environment that has vLLM, relative to the "
        "checkout (`make vllm-env` makes one with the CPU build).",
    )
    command: tuple[Text, ...] = Field(
        default=(),
        description="Start vLLM with this instead (a container, a wrapper); options are appended.",
    )
    device: Literal["auto", "gpu", "cpu"] = Field(
        default="auto", description="auto: GPUs where the driver reports any, else the CPU."
    )
    gpus_per_replica: int | None = Field(
        default=None,
        ge=1,
        le=64,
        description="GPUs that each replica gets; default: tensor_parallel, times the option "
        "pipeline-parallel-size.",
    )
    tensor_parallel: int = Field(default=1, ge=1, le=64, description="GPUs that share one layer.")
    dtype: Text = Field(default="auto", description="Weights' and activations' type: auto, bfloat16, ...")
    max_length: int | None = Field(
        default=None, ge=16, description="Most tokens of prompt and answer; default: the model's."
    )
    gpu_memory: float = Field(default=0.9, gt=0, le=1, description="Share of a GPU's memory that vLLM takes.")
    kv_cache_gib: int = Field(default=4, ge=1, description="KV cache on the CPU, GiB.")
    quantization: Text | None = Field(default=None, description="vLLM's name of it: awq, gptq, fp8, ...")
    lora: dict[Text, Text] = Field(
        default_factory=dict,
        description="LoRA adapters by the name that clients ask for: a folder on this machine, or what vLLM "
        "itself fetches (org/name at the Hub). They are no part of a version.",
    )
    options: dict[str, str | int | float | bool] = Field(
        default_factory=dict,
        description="More of vLLM's options: max-num-seqs: 64 becomes --max-num-seqs 64; true: a bare flag.",
    )

    @field_validator("options", mode="before")
    @classmethod
    def _sayable(cls, given: object) -> object:
        """One finding an option, where pydantic would have one for each type that it is not."""
        if not isinstance(given, dict):
            return given
        found: list[str] = []
        for name, value in cast("dict[Any, Any]", given).items():
            own = _OWN_OPTIONS.get(str(name).replace("_", "-"))
            if not isinstance(name, str) or not _OPTION.fullmatch(name):
                found.append(f"{name!r} is no option: write it without dashes before it, as max-num-seqs")
            elif own:
                found.append(f"{name} is not yours to set: {own}")
            elif not isinstance(value, str | int | float) or (isinstance(value, float) and math.isnan(value)):
                found.append(f"{name} must be text, a number, or true or false")
        if found:
            raise ValueError("\n".join(found))
        return cast("dict[str, Any]", given)

    @model_validator(mode="after")
    def _enough_gpus(self) -> Vllm:
        if self.gpus_per_replica is None:
            return self
        if self.device == "cpu":
            raise ValueError("gpus_per_replica has no meaning with device cpu: leave it out")
        if self.gpus_per_replica < self._needed:
            raise ValueError(
                f"gpus_per_replica is {self.gpus_per_replica}, tensor_parallel needs {self._needed}: lower "
                "tensor_parallel, or leave gpus_per_replica out"
            )
        return self

    @property
    def _needed(self) -> int:
        """GPUs that the sizes of all parallelism multiply to."""
        return self.tensor_parallel * math.prod(_size(self._told.get(name)) for name in _PARALLEL)

    @property
    def _told(self) -> dict[str, str | int | float | bool]:
        """The options as vLLM spells them."""
        return {name.replace("_", "-"): value for name, value in self.options.items()}

    @property
    def gpus(self) -> int:
        """GPUs of a replica."""
        return self.gpus_per_replica or self._needed

    @property
    def tells_gauges(self) -> bool:
        """Whether vLLM writes its gauges to `/metrics`: ramp and drain go by them."""
        return self._told.get(_NO_GAUGES, False) is False and f"--{_NO_GAUGES}" not in self.command


def _size(told: object) -> int:
    """A size as it may stand among vLLM's options; 1 where it says none."""
    return max(1, int(told)) if isinstance(told, int | str) and str(told).isdecimal() else 1


class Price(Section):
    """What a request costs: by the token, or by the hour of what serves it."""

    input_per_million: float | None = Field(default=None, ge=0, description="A million tokens in, dollars.")
    output_per_million: float | None = Field(default=None, ge=0, description="A million tokens out, dollars.")
    replica_per_hour: float | None = Field(
        default=None, ge=0, description="An hour of one replica (its GPUs), dollars."
    )
    tokens_per_s: float | None = Field(
        default=None, gt=0, description="Tokens out a second of one replica under load."
    )

    @model_validator(mode="after")
    def _one_way(self) -> Price:
        by_token = self.input_per_million is not None and self.output_per_million is not None
        by_hour = self.replica_per_hour is not None and self.tokens_per_s is not None
        if by_token == by_hour:
            raise ValueError(
                "a price: give input_per_million and output_per_million, or replica_per_hour and tokens_per_s"
            )
        return self

    @property
    def per_token(self) -> tuple[float, float]:
        """Dollars of one token in and of one token out."""
        if self.replica_per_hour is not None and self.tokens_per_s is not None:
            return 0.0, self.replica_per_hour / 3600 / self.tokens_per_s
        return (self.input_per_million or 0.0) / 1e6, (self.output_per_million or 0.0) / 1e6


class Api(Section):
    """A provider that hosts the model, asked through its OpenAI-compatible API."""

    provider: Provider = Field(description="Whose API; compatible: any URL that speaks OpenAI's.")
    model: str = Field(
        default="", description="The provider's name of the model; a version's metadata wins over it."
    )
    base_url: str | None = Field(
        default=None,
        pattern=URL_PATTERN,
        description="Where it is; needed by vertex, bedrock and compatible.",
    )
    key_env: str | None = Field(
        default=None,
        pattern=VARIABLE_PATTERN,
        description="Environment variable with the key; default: the provider's usual one. The key itself "
        "is never in a file of ours.",
    )
    timeout_s: float = Field(default=120, gt=0, description="No byte from the provider for this long: 504.")
    connect_timeout_s: float = Field(default=5, gt=0, description="No connection within this: 502.")
    retries: int = Field(
        default=1,
        ge=0,
        le=5,
        description="Times that a request is sent again which the provider refused "
        "before it began (429, 503, no connection). An answer that broke off is never asked for again.",
    )
    retry_budget: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="Most retries as a share of the requests: a provider that is down is not hammered.",
    )

    price: Price | None = Field(
        default=None, description="What the provider takes, for the cost of each request; null: unknown."
    )

    @model_validator(mode="after")
    def _reachable(self) -> Api:
        if self.provider in ("vertex", "bedrock", "compatible") and not self.base_url:
            raise ValueError(f"serving.api.base_url is needed with provider {self.provider}")
        return self


class EngineLimits(Section):
    """Above one of these (at any replica of the candidate) the ramp goes no further, and nothing is promoted.

    A replica that does not tell its gauges counts as above.
    """

    waiting: int | None = Field(default=None, ge=0, description="Most requests that wait inside the engine.")
    kv_cache: float | None = Field(default=None, gt=0, le=1, description="Most of the KV cache in use.")

    @property
    def is_set(self) -> bool:
        """Whether there is any limit."""
        return self.waiting is not None or self.kv_cache is not None


class Serving(Section):
    """What a replica runs."""

    runtime: Runtime = Field(
        default="pyfunc", description="What serves a version; a version's own metadata wins over it."
    )
    served_name: Text | None = Field(
        default=None,
        description="The model's name for clients, stable across versions; default: the endpoint.",
    )
    vllm: Vllm = Field(default_factory=Vllm, description="How vLLM is started.")
    api: Api | None = Field(default=None, description="The provider; needed by runtime api.")
    price: Price | None = Field(
        default=None,
        description="What one's own replicas cost, for the cost of each request; null: unknown. A provider's "
        "is serving.api.price.",
    )
    stream_timeout_s: float = Field(
        default=600,
        gt=0,
        description="A whole streamed answer may take this long: draining and reloads wait for it.",
    )
    warm_up_prompts: int = Field(
        default=32,
        ge=0,
        description="Recent prompts that a new replica answers before it counts as healthy, so that a "
        "canary's caches are not cold.",
    )
    engine: EngineLimits = Field(default_factory=EngineLimits, description="The engine's gauges as gates.")
    guards: Guards = Field(default_factory=Guards, description="Limits and checks before a language model.")
    cut_short_is_failure: bool = Field(
        default=False,
        description="An answer whose tokens were used up before its end (finish_reason length) is a failure "
        "of its version, for shadow, canary and watch.",
    )

    @model_validator(mode="after")
    def _complete(self) -> Serving:
        if self.runtime == "api" and self.api is None:
            raise ValueError("serving.runtime is api: serving.api must say which provider")
        if self.runtime == "api" and self.price is not None and self.api and self.api.price is None:
            raise ValueError(
                "serving.price is of one's own replicas; versions of a provider cost serving.api.price"
            )
        if self.guards.is_active and not self.is_llm:
            raise ValueError("serving.guards is for language models: set serving.runtime to vllm or api")
        if not self.is_llm and (self.vllm != Vllm() or self.api is not None):
            section = "vllm" if self.vllm != Vllm() else "api"
            raise ValueError(
                f"serving.{section} has no meaning with serving.runtime pyfunc: set it to {section}"
            )
        if self.cut_short_is_failure and not self.is_llm:
            raise ValueError(
                "serving.cut_short_is_failure is for language models: set serving.runtime to vllm or api"
            )
        if self.engine.is_set and not self.is_llm:
            raise ValueError("serving.engine is for language models: set serving.runtime to vllm or api")
        if self.engine.is_set and not self.vllm.tells_gauges:
            raise ValueError(
                f"serving.engine limits gauges that {_NO_GAUGES} takes away: leave it out of serving.vllm, "
                "or leave out serving.engine"
            )
        return self

    @property
    def failing_ends(self) -> frozenset[str]:
        """The finish reasons that make an answer with status 200 a failure of its version."""
        return frozenset(
            reason
            for reason, counts in (
                (_BLOCKED, self.guards.blocked_is_failure),
                (_CUT_SHORT, self.cut_short_is_failure),
            )
            if counts and self.is_llm
        )

    @property
    def is_llm(self) -> bool:
        """Whether clients speak OpenAI's API to this endpoint instead of MLflow's."""
        return self.runtime != "pyfunc"

    def price_of(self, runtime: Runtime) -> Price | None:
        """What a version of this runtime costs: the provider's price, or one's own; None where unknown."""
        if runtime == "api":
            return self.api.price if self.api else None
        return self.price
