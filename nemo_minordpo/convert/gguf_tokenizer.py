"""The tokenizer that a GGUF file describes.

It is built here because the one that transformers reads from such files has the wrong end-of-turn token, adds a BOS
that the model never saw, and does not split SmolLM's numbers into digits.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

from nemo_minordpo.core.finite import first_of
from nemo_minordpo.errors import UserError

# tokenizer.ggml.token_type
_CONTROL, _USER_DEFINED, _UNUSED = 3, 4, 5


def build_tokenizer(fields: dict[str, Any]) -> Any:
    """A fast tokenizer of transformers.

    Args:
        fields: the file's keys and values; `tokenizer.ggml.pre` is "smollm" or "qwen2".

    Raises:
        UserError: ids of added tokens are not those that the tokenizer would give them.
    """
    return {"smollm": _smollm, "qwen2": _qwen2}[fields["tokenizer.ggml.pre"]](fields)


def _smollm(fields: dict[str, Any]) -> Any:
    """Byte-level BPE over single digits; no BOS is added."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = fields["tokenizer.ggml.tokens"]
    bpe: Any = Tokenizer(models.BPE(_vocabulary(fields), _merges(fields)))
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens(list(_added_tokens(fields).values()))
    bos, eos, unknown, padding = (
        tokens[fields[f"tokenizer.ggml.{name}_token_id"]] for name in ("bos", "eos", "unknown", "padding")
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=bos,
        eos_token=eos,
        unk_token=unknown,
        pad_token=padding,
        chat_template=fields["tokenizer.chat_template"],
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def _qwen2(fields: dict[str, Any]) -> Any:
    """Transformers' class for Qwen2: it knows the normalisation and the split into words, and adds no BOS."""
    from transformers import Qwen2TokenizerFast

    tokens = fields["tokenizer.ggml.tokens"]
    eos, padding = (tokens[fields[f"tokenizer.ggml.{name}_token_id"]] for name in ("eos", "padding"))
    added = _added_tokens(fields)
    with tempfile.TemporaryDirectory() as folder:
        vocabulary, merges = Path(folder, "vocab.json"), Path(folder, "merges.txt")
        words = {token: index for token, index in _vocabulary(fields).items() if index not in added}
        vocabulary.write_text(json.dumps(words), encoding="utf-8")
        merges.write_text("\n".join(map(" ".join, _merges(fields))), encoding="utf-8")
        tokenizer = Qwen2TokenizerFast(
            vocab_file=str(vocabulary),
            merges_file=str(merges),
            eos_token=eos,
            pad_token=padding,
            unk_token=padding,
            added_tokens_decoder=added,
            chat_template=fields["tokenizer.chat_template"],
        )
    moved = [str(token) for index, token in added.items() if tokenizer.convert_tokens_to_ids(str(token)) != index]
    if moved:  # added tokens get the ids after the words'
        raise UserError(f"added tokens must come after the words of the vocabulary: {first_of(moved)}")
    return tokenizer


def _vocabulary(fields: dict[str, Any]) -> dict[str, int]:
    """Ids of all tokens, except those that only fill the embedding up."""
    kinds = zip(fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"], strict=True)
    return {token: index for index, (token, kind) in enumerate(kinds) if kind != _UNUSED}


def _merges(fields: dict[str, Any]) -> list[tuple[str, str]]:
    return [tuple(merge.split(" ", 1)) for merge in fields["tokenizer.ggml.merges"]]


def _added_tokens(fields: dict[str, Any]) -> dict[int, Any]:
    """Tokens that stand for themselves in a text, by id; those that control the model are special."""
    from tokenizers import AddedToken

    kinds = zip(fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"], strict=True)
    return {
        index: AddedToken(token, special=kind == _CONTROL, normalized=False)
        for index, (token, kind) in enumerate(kinds)
        if kind in (_CONTROL, _USER_DEFINED)
    }
