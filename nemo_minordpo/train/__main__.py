"""`python -m nemo_minordpo.train [--only-reference] KEY=VALUE ...`: how torchrun and srun start one rank."""

import sys

from nemo_minordpo.errors import UserError, refused_by_machine
from nemo_minordpo.host.waiting import wait_briefly
from nemo_minordpo.terminal import say

if __name__ == "__main__":
    wait_briefly()  # before torch is imported
    from nemo_minordpo.train.launch import ONLY_REFERENCE, main

    overrides = [argument for argument in sys.argv[1:] if argument != ONLY_REFERENCE]
    try:
        main(overrides, only_reference=len(overrides) < len(sys.argv) - 1)
    except (UserError, OSError) as error:
        message = refused_by_machine(error) if isinstance(error, OSError) else str(error)
        if not message:
            raise
        say(f"error: {message}", style="red")
        sys.exit(2)
