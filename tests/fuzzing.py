"""How many mutated inputs the tests of that kind try: MINORDPO_FUZZ_EXAMPLES, a few unless it is set."""

import os

from hypothesis import HealthCheck, settings

_FEW = 40
NUM_EXAMPLES = int(os.environ.get("MINORDPO_FUZZ_EXAMPLES", _FEW))
# The few are the same in every run: a pull request does not fail by what it did not change.
FUZZ = settings(
    max_examples=NUM_EXAMPLES,
    derandomize=NUM_EXAMPLES <= _FEW,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
