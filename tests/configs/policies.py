"""Policy texts for the tests of this room."""

from __future__ import annotations

from typing import Any

VALID = """\
endpoint: flights
model: delays
owner: ops@example.org
evaluation:
  data: held_out.parquet
  label: late
  task: classification
  metrics:
    - name: f1
      min: 0.5
shadow:
  score_tolerance: 0.1
canary:
  steps: [5, 25, 50, 95]
  bake_s: 60
"""


def valid_content() -> dict[str, Any]:
    """The same as a mapping."""
    return {
        "endpoint": "flights",
        "model": "delays",
        "owner": "ops@example.org",
        "evaluation": {"data": "d.parquet", "label": "y", "task": "regression", "metrics": [{"name": "mae"}]},
        "shadow": {"score_tolerance": 0.1},
    }


def sagemaker_content(**more: Any) -> dict[str, Any]:
    """The least that a section `sagemaker:` must say."""
    return {
        "region": "eu-central-1",
        "role_arn": "arn:aws:iam::123456789012:role/interlock-serving",
        "image": "123456789012.dkr.ecr.eu-central-1.amazonaws.com/interlock:1",
        "artifacts": "s3://models/interlock",
        "instance_types": ["ml.m5.large"],
        **more,
    }


def whole_sagemaker() -> dict[str, Any]:
    """One with every part."""
    return sagemaker_content(
        capture={"uri": "s3://models/captures"}, autoscale={"max_instances": 3, "value": 4}, vllm={}
    )


def generation_content() -> dict[str, Any]:
    """An evaluation of answers in words, with every section filled in."""
    api = {"url": "http://127.0.0.1:9/v1", "model": "judge"}
    return {
        "task": "generation",
        "data": "prompts.jsonl",
        "scorers": [{"kind": "exact_match", "min": 0.5, "margin": 0.05}, {"kind": "judge", "margin": 0.1}],
        "judge": {"api": api, "rubric": "Right and polite.", "labelled": "labelled.jsonl"},
        "embeddings": api,
        "slices": [{"column": "topic", "metric": "exact_match", "margin": 0.1}],
    }


def vertex_content(**more: Any) -> dict[str, Any]:
    """A section `vertex:` with what a shadow needs."""
    return {
        "project": "acme-models",
        "region": "europe-west4",
        "image": "europe-west4-docker.pkg.dev/acme-models/serving/interlock:1",
        "artifacts": "gs://acme-models/interlock",
        "request_log": {"table": "acme-models.interlock.requests", "delay_s": 0},
        **more,
    }


def whole_serving() -> dict[str, Any]:
    """A section `serving:` with every part."""
    return {
        "runtime": "vllm",
        "api": {"provider": "openai", "price": {"input_per_million": 2, "output_per_million": 8}},
        "price": {"input_per_million": 0.5, "output_per_million": 1.5},
        "guards": {
            "input": [{"check": "phrases", "phrases": ["project falcon"], "action": "block"}],
            "output": [{"check": "personal", "kinds": ["email"], "action": "redact"}],
        },
    }
