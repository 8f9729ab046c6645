"""Mutated command lines of `train` give settings with finite numbers, or a UserError."""

import dataclasses
import math
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from nemo_minordpo import config
from nemo_minordpo.errors import UserError
from tests.fuzzing import FUZZ, NUM_EXAMPLES

REQUIRED = [
    "pretrained_checkpoint.restore_from_path=base.nemo",
    "model.data.data_prefix.train=[train.jsonl]",
    "exp_manager.explicit_log_dir=run",
    "model.dpo.ref_policy_kl_penalty=0.1",
]
VALID = [
    "loss=dpop", "precision=bf16", "parallel=gpus8", "model.dpo.preference_loss=ipo", "model.dpo.dpop_lambda=5",
    "model.dpo.sft_loss_weight=0.5", "model.dpo.reference_log_probs=live", "model.dpo.reference_cache=cache",
    "model.optim.lr=2e-5", "model.optim.betas=[0.9,0.95]", "model.optim.weight_decay=0.01",
    "model.optim.sched.name=cosine", "model.optim.sched.warmup_steps=3", "model.optim.sched.min_lr=1e-9",
    "model.data.seq_length=512", "model.data.packed_sequence_size=2048", "model.data.invalid_pairs=drop",
    "model.data.default_chosen_reward=2", "model.data.data_prefix.validation=[validation.jsonl]",
    "model.tensor_model_parallel_size=2", "model.peft.peft_scheme=lora", "model.peft.lora_tuning.adapter_dim=8",
    "model.peft.lora_tuning.alpha=16", "model.peft.lora_tuning.adapter_dropout=0.1", "model.seed=7",
    "trainer.devices=2", "trainer.dpo.max_steps=10", "trainer.dpo.gradient_clip_val=1.0",
    "trainer.dpo.watch.interval=5", "exp_manager.create_wandb_logger=true",
    "+exp_manager.wandb_logger_kwargs.project=mine", "exp_manager.wandb_logger_kwargs={project: mine}",
    "exp_manager.max_time_per_run='00:01:00:00'", "exp_manager.checkpoint_callback_params.save_top_k=2",
    "+model.hidden_dropout=0.1", "+model.rope={scale: 2.0, base: 1e4}",
]  # fmt: skip
VALUES = st.one_of(
    st.sampled_from(
        [
            "", "nan", "-inf", "1e999", "1e308", "-1", "0", "1e3", "9" * 400, "9" * 5000, "1_000", "0x1f", "null", "~",
            "true", "[]", "[nan]", "[1,[2,inf]]", "{}", "{a: nan}", "{a: {b: [inf]}}", "[" * 200, "{a: " * 200, "'",
            '"', "'nan'", '"inf"', "it's", "a b", "a=b", "a,b", "${model.seed}", "${x", "${oc.env:NONE}", "???",
            "\\", "\0",
            "größe", "漢字", "😀", "\u202e", "\ud800", "٣", "\uff11", "range(3)", "choice(1,2)", "glob(*)", "@package",
            "*", "1e400", "-0.0", "5e-324", "1.7976931348623157e308", "[0.9,0.999,0.9]", "x" * 5000, "\n", "a\nb: c",
            "!!python",
            "int(nan)", "float(1)", "str(3)", "json_str(1)", "extend_list(1)",
        ]
    ),
    st.floats().map(str),
    st.integers().map(str),
    st.text(max_size=8),
)  # fmt: skip
BEGINNINGS = ("model.", "x.", "+", "++", "~", "--", ".", "+model.")
KEYS = st.sampled_from(sorted({text.partition("=")[0].lstrip("+") for text in [*REQUIRED, *VALID]}))


@st.composite
def overrides(draw):
    """Valid overrides with one to three mutations: of key, value, position or number."""
    texts = REQUIRED + draw(st.lists(st.sampled_from(VALID), min_size=1, max_size=4))
    for _ in range(draw(st.integers(1, 2))):
        place = draw(st.integers(0, len(texts) - 1))
        key, _, value = texts[place].partition("=")
        at = draw(st.integers(0, len(key)))
        kinds = {
            "a value": f"{key}={draw(VALUES)}",
            "a value of another setting": f"{key}={draw(st.sampled_from(VALID)).partition('=')[2]}",
            "a number": f"{key}={draw(st.floats() | st.integers(-2, 2000))}",
            "a setting more": f"{texts[place]}",
            "another key": f"{draw(KEYS)}={value}",
            "a letter less": f"{key[:at]}{key[at + 1 :]}={value}",
            "a letter more": f"{key[:at]}{draw(st.characters(exclude_categories=[]))}{key[at:]}={value}",
            "a section less": f"{key.partition('.')[2]}={value}",
            "a section more": f"{draw(st.sampled_from(BEGINNINGS))}{key}={value}",
            "other case": f"{key.swapcase()}={value}",
            "no value": key,
        }
        texts[place] = kinds[draw(st.sampled_from(sorted(kinds)))]
    if draw(st.booleans()):
        texts += [draw(st.sampled_from(texts))]
    return texts


def numbers(value):
    """Every float at any depth."""
    if dataclasses.is_dataclass(value):
        value = vars(value)
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [number for one in value for number in numbers(one)]
    return [value] if isinstance(value, float) else []


def load(composed):
    return config.load(composed)


def ends(texts):
    """The outcome of a command line: "loaded", or "refused" with a message.

    Loaded settings must be the same when read back from a run folder.
    """
    try:
        loaded = load(config.compose(texts))
    except UserError as error:
        return "refused" if 0 < len(str(error).strip()) < 20_000 else "refused without a readable reason"
    assert all(map(math.isfinite, numbers(loaded))), loaded
    config.identity(loaded)
    saved = OmegaConf.to_yaml(OmegaConf.structured(loaded))
    assert load(OmegaConf.create(saved)) == loaded
    return "loaded"


def test_mutated_command_lines():
    seen = Counter()

    @FUZZ
    @given(overrides())
    def try_one(texts):
        seen[ends(texts)] += 1

    try_one()
    assert seen.keys() <= {"loaded", "refused"}
    assert seen.total() >= NUM_EXAMPLES
    assert min(seen["loaded"], seen["refused"]) > 0.05 * NUM_EXAMPLES, seen


def test_every_valid_override_is_loaded_on_its_own():
    loaded = [text for text in VALID if ends([*REQUIRED, text]) == "loaded"]
    assert len(loaded) > 25, set(VALID) - set(loaded)


def test_floats_are_found_at_any_depth():
    assert numbers({"a": [1.5, {"b": math.inf}], "c": 3, "d": load(config.compose(REQUIRED)).model.optim})[:2] == [
        1.5,
        math.inf,
    ]
