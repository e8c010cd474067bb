"""Named endings of a flow run: an answer, not an accident.

A flow that returns a FAILED or CANCELLED state makes Prefect's engine raise it once more at the
very end and log that as an unexpected exception. The state already says why; the stack trace
would only frighten whoever reads the run's log, so exactly that record is left out.
"""

from __future__ import annotations

import logging

from prefect.client.schemas.objects import State
from prefect.exceptions import CancelledRun, FailedRun
from prefect.states import Cancelled, Completed, Failed

_ENGINE_LOGGERS = ("prefect.flow_runs", "prefect.engine", "prefect")
_COMPLETED = ("Promoted", "RolledBack")
_FAILED = ("Rejected", "Incomplete", "Harmed", "Blind", "DrillFailed")


def named_state(name: str, message: str) -> State:
    """The final state of a flow run: COMPLETED, FAILED or CANCELLED by its name, with the reason."""
    if name in _COMPLETED:
        return Completed(name=name, message=message)
    for logger in _ENGINE_LOGGERS:
        logging.getLogger(logger).addFilter(_is_no_ending)
    return Failed(name=name, message=message) if name in _FAILED else Cancelled(name=name, message=message)


def _is_no_ending(record: logging.LogRecord) -> bool:
    """Keep every record but the engine's report of a state that the flow itself returned."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, (FailedRun, CancelledRun))
