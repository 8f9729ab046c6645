"""The number of mutated inputs that fuzz tests try: MINORDPO_FUZZ_EXAMPLES; by default a few."""

import os

from hypothesis import HealthCheck, settings

_FEW = 40
NUM_EXAMPLES = int(os.environ.get("MINORDPO_FUZZ_EXAMPLES", _FEW))
# By default they are the same in every run, so that a pull request fails only because of its own changes.
FUZZ = settings(
    max_examples=NUM_EXAMPLES,
    derandomize=NUM_EXAMPLES <= _FEW,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
