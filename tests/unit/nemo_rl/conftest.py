import importlib.util

from tests.unit.nemo_rl import contract

if importlib.util.find_spec("nemo_rl") is None:
    contract.install()
