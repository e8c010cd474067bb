"""The drill's model, as MLflow loads it from code: adds two numbers, well or with a chosen fault.

Faults that begin in the canary wait for a file (`switch`), which the drill makes at that moment. Runs inside
a replica or an evaluation, alone: it imports nothing of ours.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import mlflow  # noqa: TID253 (this module is a model; nobody imports it)

_BAD_SHARE = 0.3
_SLOW_S = 0.8
_SEEN_OFFLINE = 0.5
"""The held-out rows stay below; live rows do not."""


class Adder(mlflow.pyfunc.PythonModel):
    """a + b, until the fault begins."""

    def load_context(self, context) -> None:  # type: ignore[no-untyped-def]
        """Take the fault from the version's own configuration."""
        self._fault = str(context.model_config["fault"])
        self._switch = Path(str(context.model_config["switch"]))
        if self._fault == "crash-on-start" and "serving.replica" in sys.orig_argv:
            os._exit(3)

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """Sums of the rows."""
        del context, params
        sums = model_input["a"] + model_input["b"]
        if self._fault == "bad-outputs":
            sums = sums.where(model_input["a"] < _SEEN_OFFLINE, sums + 5)
        elif self._switch.exists():
            self._go_wrong(float(model_input["a"].iloc[0]))
        return [float(one) for one in sums]

    def _go_wrong(self, a: float) -> None:
        is_bad = (a * 7.3) % 1 < _BAD_SHARE
        if self._fault == "crash-mid-canary":
            os._exit(3)
        elif self._fault == "lost-telemetry":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif self._fault == "errors" and is_bad:
            raise RuntimeError("drill: this version fails")
        elif self._fault == "slow-tail" and is_bad:
            time.sleep(_SLOW_S)


mlflow.models.set_model(Adder())
