"""Predictions as JSON: the shapes of MLflow's scoring server, but always valid JSON.

NaN and infinities have no place in JSON (MLflow's server writes the bare word NaN, which most
parsers refuse). They become null: a frame may hold a missing value on purpose, and a client can
tell null from a number. They are counted (`interlock_replica_nonfinite_answers_total`), and the
shadow sees a null where the champion had a number as a disagreement.
"""

from __future__ import annotations

import base64
import datetime
import json
import math
from typing import Any, cast

import orjson

from serving.replica.errors import ModelFault

_OPTIONS = orjson.OPT_NON_STR_KEYS


def jsonable(raw: Any) -> Any:
    """numpy and pandas as plain values, in MLflow's orientation (frames and series: records)."""
    import numpy as np
    import pandas as pd

    if isinstance(raw, np.ndarray):
        return raw.tolist()
    if isinstance(raw, pd.Series):
        raw = raw.to_frame()
    if isinstance(raw, pd.DataFrame):
        return raw.to_dict(orient="records")
    return raw


def encode(plain: Any, *, wrapped: bool) -> bytes:
    """`{"predictions": ...}`, or the bare answer for chat-style requests. Raises `ModelFault`."""
    document = {"predictions": plain} if wrapped else plain
    try:
        return orjson.dumps(document, default=_plain, option=_OPTIONS)
    except TypeError:
        pass  # whole numbers beyond 64 bits, lone surrogates, odd keys
    try:
        return json.dumps(_finite(document), default=_plain, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ModelFault("The model's answer cannot be written as JSON.") from error


def has_nonfinite(raw: Any) -> bool:
    """Whether a numeric array or frame holds NaN or infinities. Other types are not searched."""
    import numpy as np
    import pandas as pd

    if isinstance(raw, pd.DataFrame | pd.Series):
        raw = raw.to_numpy()
    if not isinstance(raw, np.ndarray) or raw.dtype.kind not in "fc":
        return False
    return not bool(np.isfinite(cast("Any", raw)).all())


def _plain(value: Any) -> Any:
    import numpy as np
    import pandas as pd
    import pydantic

    if isinstance(value, np.ndarray | np.generic):
        return cast("Any", value).tolist()
    if isinstance(value, pd.DataFrame | pd.Series):
        return jsonable(value)
    if value is pd.NaT or value is pd.NA:
        return None
    if isinstance(value, bytes | bytearray):
        return base64.encodebytes(value).decode("ascii")
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, pydantic.BaseModel):
        return value.model_dump()
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(name): _finite(inner) for name, inner in cast("dict[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in cast("list[Any]", value)]
    return value
