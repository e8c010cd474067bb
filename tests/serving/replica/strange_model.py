"""A model that does what its `mode` column says: MLflow logs this file as the model's code."""

import sys
import time

import numpy as np
from mlflow.models import set_model  # noqa: TID253 - this file is the model
from mlflow.pyfunc import PythonModel  # noqa: TID253 - this file is the model


class StrangeModel(PythonModel):
    """Answers `x * 2 + n` a row, unless a row's mode says otherwise. `params` may add `plus`."""

    def predict(self, context, model_input, params=None):
        answers = (model_input["x"] * 2 + model_input["n"]).to_numpy(dtype=float)
        for mode in set(model_input["mode"]) - {"ok"}:
            if mode == "raise":
                raise ValueError("tattletale: internal detail")
            if mode == "exit":
                sys.exit(7)
            if mode == "set":
                return {1, 2}
            if mode == "nan":
                answers[model_input["mode"] == "nan"] = np.nan
            if mode.startswith("sleep"):
                time.sleep(float(mode.removeprefix("sleep")))
        return answers + (params or {}).get("plus", 0.0)


set_model(StrangeModel())
