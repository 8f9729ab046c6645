from tests.unit.train.conftest import pair, tokenizer, write  # noqa: F401
