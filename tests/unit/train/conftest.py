import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from tests.tiny import write_tokenizer


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture
def write(tmp_path):
    """Write rows (dicts or raw lines) into a jsonl file."""

    def write_rows(*rows, name="pairs.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        return path

    return write_rows


def pair(prompt="Two plus two?\n", chosen="2 + 2 = 4", rejected="2 + 2 = 5", **more):
    return {"prompt": prompt, "chosen_response": chosen, "rejected_response": rejected, **more}
