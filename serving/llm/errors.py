"""Why a language model's replica does not start, with the launcher's exit status.

LlmError
├── NoGpuFree               5
├── EngineFailed            4: vLLM ended or never answered
└── NotServable             4: the version has no weights, or says what cannot be
"""

from __future__ import annotations


class LlmError(Exception):
    """Base; the message says what was asked, found, and the next step."""

    status = 4


class NoGpuFree(LlmError):
    """Fewer GPUs are free than the policy wants for a replica."""

    status = 5


class EngineFailed(LlmError):
    """vLLM ended, or did not answer in time."""


class NotServable(LlmError):
    """There is nothing in this version that can be served."""
