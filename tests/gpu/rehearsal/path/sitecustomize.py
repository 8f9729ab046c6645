"""Python imports this first in every process whose PYTHONPATH has this folder, also in those that a check starts."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[4]))

from tests.gpu.rehearsal import ACTIVE

# a process that hides its GPU gets none, here as there
if os.environ.get(ACTIVE) and os.environ.get("CUDA_VISIBLE_DEVICES") != "":
    from tests.gpu.rehearsal import cuda

    cuda.install()
