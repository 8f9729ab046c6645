"""`python -m nemo_minordpo.train KEY=VALUE ...`: how torchrun and srun start one rank."""

import sys

from rich.console import Console

from nemo_minordpo.train.launch import main

if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ValueError as error:
        Console(stderr=True).print(f"error: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
        sys.exit(2)
