"""Python imports this first in every process with this folder on PYTHONPATH, including those that a check starts."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[4]))

from tests.gpu.rehearsal import ACTIVE

# as on a real GPU machine, a process that hides its GPU has none
if os.environ.get(ACTIVE) and os.environ.get("CUDA_VISIBLE_DEVICES") != "":
    from tests.gpu.rehearsal import cuda

    cuda.install()
