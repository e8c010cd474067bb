"""`python -m serving.replica SPEC.json`: run one replica until SIGTERM.

Exit status: 0 drained after a signal, 1 the port is taken, 2 the spec is wrong, 3 neither the
registry nor a local copy is there (worth another start), 4 the model cannot be loaded or fails.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

_THREAD_LIMITS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "BLIS_NUM_THREADS",
    "LOKY_MAX_CPU_COUNT",
)


def main(arguments: list[str]) -> int:
    """Read the spec, limit the numeric libraries' threads before they are imported, serve."""
    if len(arguments) != 1:
        print("Usage: python -m serving.replica SPEC.json", file=sys.stderr)
        return 2
    try:
        document = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
        threads = int(document.get("threads", 1))
    except (OSError, ValueError, AttributeError, TypeError) as error:
        print(f"Spec {arguments[0]} cannot be read: {error}", file=sys.stderr)
        return 2
    for name in _THREAD_LIMITS:  # numpy and its like read these once, when they are imported
        os.environ[name] = str(threads)

    from pydantic import ValidationError

    from serving.replica.spec import ReplicaSpec

    try:
        spec = ReplicaSpec.model_validate(document)
    except ValidationError as error:
        print(f"Spec {arguments[0]} is wrong: {error}", file=sys.stderr)
        return 2

    from serving.replica.server import serve

    return serve(spec)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
