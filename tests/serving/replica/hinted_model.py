"""A model with type hints in place of a signature: MLflow logs this file as the model's code."""

import pydantic
from mlflow.models import set_model  # noqa: TID253 - this file is the model
from mlflow.pyfunc import PythonModel  # noqa: TID253 - this file is the model


class Message(pydantic.BaseModel):
    """One input."""

    role: str
    length: int


class HintedModel(PythonModel):
    """Answers each message's length; a role of `raise` is a fault."""

    def predict(self, model_input: list[Message]) -> list[int]:
        if any(message.role == "raise" for message in model_input):
            raise ValueError("tattletale: internal detail")
        return [message.length for message in model_input]


set_model(HintedModel())
