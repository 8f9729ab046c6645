"""Run one check in its own process: python -m tests.gpu.one MODULE:FUNCTION FOLDER ANSWER [ARGUMENT ...]."""

import importlib
import json
import os
import sys
import traceback
from pathlib import Path

from tests.gpu import NotRun


def main(target: str, folder: str, answer: str, *arguments: str) -> None:
    module, _, name = target.partition(":")
    try:
        figure = getattr(importlib.import_module(module), name)(Path(folder), *arguments)
        outcome = {"result": "passed", "figure": figure}
    except NotRun as lacking:
        outcome = {"result": "not run", "reason": str(lacking)}
    except Exception as error:
        traceback.print_exc()
        lines = str(error).strip().splitlines() or [""]
        outcome = {"result": "FAILED", "reason": f"{type(error).__name__}: {lines[0]}"}
    Path(answer).write_text(json.dumps(outcome))
    sys.stdout.flush()
    sys.stderr.flush()
    # NCCL, CUDA and worker threads may hang or crash during shutdown, when the result is already known
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
