"""NeMo-RL's DPO with this project's losses.

    uv run python -m nemo_minordpo.nemo_rl.run_dpo --config minordpo.yaml dpo.preference_loss=minordpo

Arguments and configuration are those of NeMo-RL's examples/run_dpo.py; the section `dpo` may have this project's
settings of `model.dpo` too.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from nemo_rl.algorithms.dpo import MasterConfig, dpo_train, setup
from nemo_rl.algorithms.utils import get_tokenizer
from nemo_rl.data.utils import setup_preference_data
from nemo_rl.distributed.virtual_cluster import init_ray
from nemo_rl.utils.config import load_config, parse_hydra_overrides
from nemo_rl.utils.logger import get_next_experiment_dir
from omegaconf import OmegaConf

from nemo_minordpo.errors import UserError
from nemo_minordpo.nemo_rl.loss import MinorDPOLossFn
from nemo_minordpo.nemo_rl.reference import CachedReference
from nemo_minordpo.nemo_rl.settings import objective_of


def run(path: Path, overrides: list[str]) -> None:
    """Train as a configuration says.

    Args:
        path: NeMo-RL's YAML file.
        overrides: in Hydra's grammar.

    Raises:
        UserError: a setting of the section `dpo` is wrong; nothing has been started then.
    """
    composed = load_config(path)
    if overrides:
        composed = parse_hydra_overrides(composed, overrides)
    plain: Any = OmegaConf.to_container(composed, resolve=True)
    config = MasterConfig(**plain)
    section = objective_of(config.dpo)
    config.logger["log_dir"] = get_next_experiment_dir(config.logger["log_dir"])
    init_ray()
    tokenizer = get_tokenizer(config.policy["tokenizer"])
    policy, _, pairs, validation, own, logger, checkpointer, state, config = setup(
        config, tokenizer, *setup_preference_data(tokenizer, config.data)
    )
    loss = MinorDPOLossFn(config.dpo, use_fused_linear_logprobs=own.use_fused_linear_logprobs)
    if section.reference_cache is not None:
        policy = CachedReference(policy, Path(section.reference_cache), config=config.policy)
    with checkpointer:  # completes checkpoints that are still being written
        dpo_train(policy, pairs, validation, tokenizer, loss, config, logger, checkpointer, state)


def main() -> None:
    """Read the command line; a wrong setting ends with one line per mistake."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="NeMo-RL's YAML file")
    given, overrides = parser.parse_known_args()
    try:
        run(given.config, overrides)
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
