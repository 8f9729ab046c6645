"""Overrides: values survive a round trip through Hydra's own parser, and unreadable ones get a helpful message."""

import contextlib
import dataclasses
import re
import shlex

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from nemo_minordpo import config
from nemo_minordpo.config.keys import SETTINGS
from nemo_minordpo.config.overrides import compose_problems
from nemo_minordpo.errors import UserError

REQUIRED = [
    "pretrained_checkpoint.restore_from_path=base.nemo",
    "model.data.data_prefix.train=[train.jsonl]",
    "exp_manager.explicit_log_dir=run",
    "model.dpo.ref_policy_kl_penalty=0.1",
]
# characters with a meaning in Hydra's or OmegaConf's grammar, and ordinary ones
TEXTS = st.text(
    st.one_of(
        st.sampled_from(" \t\n\\'\"${}[]():=,~+-./_#%@?|*&;<>!^`0e1nullüß漢😀"),
        st.characters(exclude_categories=["Cs"]),
    )
)
WORDS = st.sampled_from(
    ["null", "True", "nan", "inf", "1e-3", "007", "1_000", "0x1", "", ".5", "e5", "-", "runs/1", "~/x"]
)
SCALARS = st.one_of(TEXTS, WORDS, st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False))


def resolved(override):
    """The value of an override, parsed by Hydra and resolved by OmegaConf."""
    parsed = OverridesParser.create().parse_override(override)
    assert not parsed.is_sweep_override()
    return OmegaConf.to_container(OmegaConf.create({"key": parsed.value()}), resolve=True)["key"]


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(
        SCALARS,
        st.lists(SCALARS, max_size=3),
        st.dictionaries(
            st.from_regex(r"[a-z]\w{0,5}", fullmatch=True)
            .filter(str.isascii)
            .filter(lambda key: key not in {"nan", "inf", "null", "true", "false"}),
            SCALARS,
            max_size=2,
        ),
    )
)
@example("größe/runs")
@example("\\${x} \\\\${y}\\")
@example("it's \\' a run\\")
@example(["a,b", "c]", None, True, 1e-05])
def test_values_survive_a_round_trip_through_hydras_grammar(value):
    parsed = resolved(f"key={config.hydra_value(value)}")
    assert parsed == value
    assert repr(parsed) == repr(value)  # 1 is neither True nor 1.0


def test_unquoted_values_would_change():
    assert resolved("key=1e-3") != "1e-3"
    with pytest.raises(Exception, match="token recognition error"):
        resolved("key=größe")


def test_quoted_values_reach_a_composed_configuration(tmp_path):
    (tmp_path / "c.yaml").write_text("path: x\nrest: []\n")
    texts = ["größe/it's a run=1,2", "${not_a_key}", "C:\\tmp\\", "null", "1e-3", "~/x"]
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        for text in texts:
            composed = hydra_compose("c", [f"path={config.hydra_value(text)}", f"rest={config.hydra_value(texts)}"])
            assert OmegaConf.to_container(composed, resolve=True) == {"path": text, "rest": texts}


def problem(override):
    """The message for a single wrong override."""
    problems = compose_problems([*REQUIRED, override])
    assert len(problems) == 1, problems
    for words_of_hydra in ("append to your config", "hydra.cc", "Lexer", "add --multirun"):
        assert words_of_hydra not in problems[0]
    return problems[0]


FOLDER = "exp_manager.explicit_log_dir"
TRAIN = "model.data.data_prefix.train"


@pytest.mark.parametrize(
    ("override", "taken", "value"),
    [
        (f"{FOLDER}=runs/it's a run", "'", "runs/it's a run"),
        (f"{FOLDER}=runs/größe", "ö ß", "runs/größe"),
        (f"{FOLDER}=lr=1e-4/run", "=", "lr=1e-4/run"),
        (f"{FOLDER}=runs/(a)", "( )", "runs/(a)"),
        (f'{FOLDER}="a', '"', '"a'),
        (f"{FOLDER}=a,b", None, "a,b"),
        (f"{FOLDER}=1e-3", None, "1e-3"),
        (f"{FOLDER}=1_000", None, "1_000"),
        (f"{TRAIN}=[lr=1/a.jsonl,größe/b.jsonl]", "= ö ß", ["lr=1/a.jsonl", "größe/b.jsonl"]),
        (f"{TRAIN}=[2e1]", None, ["2e1"]),
        (f"{TRAIN}=a.jsonl,b.jsonl", None, ["a.jsonl", "b.jsonl"]),
        ("+model.tokenizer.type=größe", "ö ß", "größe"),
        ("exp_manager.wandb_logger_kwargs.name=it's", "'", "it's"),
    ],
)
def test_the_suggested_quoting_works(override, taken, value):
    message = problem(override)
    assert message.startswith(override)
    if taken:
        assert f"Hydra reads {taken} in quotes only" in message
    (typed,) = shlex.split(re.search(r"quote it: (.*?)(; `minordpo|$)", message).group(1))
    assert compose_problems([*REQUIRED, typed]) == []
    assert resolved(typed) == value


def test_a_tilde_is_expanded_in_the_suggestion(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert problem(f"{FOLDER}=~/runs/x").endswith(f"quote it: {FOLDER}=/home/me/runs/x")
    with pytest.raises(ValueError, match="the shell does not expand ~"):
        load(f"{FOLDER}='~/runs/x'")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("model.dpo.prefrence_loss=dpo", "did you mean model.dpo.preference_loss?"),
        ("++model.dpo.prefrence_loss=dpo", "did you mean model.dpo.preference_loss?"),
        ("model.DPO.Preference_Loss=dpo", "did you mean model.dpo.preference_loss?"),
        ("model.dop.preference_los=dpo", "did you mean model.dpo.preference_loss?"),
        ("model.dpo={preference_los: dpo}", "did you mean model.dpo.preference_loss?"),
        ("trainer.max_epochs=3", "did you mean trainer.dpo.max_epochs?"),
        ("+trainer.max_epochs=3", "did you mean trainer.dpo.max_epochs?"),
        ("optim.lr=3", "did you mean model.optim.lr?"),
        ("model.dpo.beta=1", "did you mean model.dpo.ref_policy_kl_penalty?"),
        ("model.data.max_length=512", "did you mean model.data.seq_length?"),
        ("pref_loss=sigmoid", "did you mean model.dpo.preference_loss?"),
        ("per_device_train_batch_size=4", "did you mean model.global_batch_size?"),
        ("precompute_ref_log_probs=true", "did you mean model.dpo.reference_log_probs?"),
        ("bf16=true", "bf16 is not a setting: precision=bf16 trains in bfloat16"),
        ("model.optim.warmup_steps=1", "did you mean model.optim.sched.warmup_steps?"),
        ("model.hidden_dropout=0.1", "add a plus: +model.hidden_dropout=VALUE"),
        ("model.dpo.preference_average_log_probs=maybe", "average_log_probs=maybe: true or false expected"),
        ("model.dpo.gamma=0.5", "did you mean model.dpo.simpo_gamma?"),
        ("dpo_label_smoothing=0.1", "did you mean model.dpo.label_smoothing?"),
        ("experiment=demo", "`minordpo sweep NAME`"),
        ("loss=MinorDPO", "did you mean 'minordpo'?"),
        ("loss@model.optim=dpo", "the group loss cannot be moved to another section; set loss=NAME"),
        ("~loss=[1]", "one of dpo, dpop, minordpo expected"),
        ("hydra.run.dir=x", "the run folder is exp_manager.explicit_log_dir"),
        ("~model.optim.sched", "a setting cannot be removed"),
        ("--model.seed=3", "did you mean model.seed=3?"),
        ("'model.seed=3'", "did you mean model.seed=3?"),
        ("--multirun", "Hydra's options are not supported"),
        ("model.seed 3", "settings are written KEY=VALUE"),
        ("trainer.dpo.max_steps=1e3", "a whole number expected, such as trainer.dpo.max_steps=1000"),
        ("trainer.dpo.max_steps=null", "a whole number expected"),
        ("trainer.dpo.val_check_interval=0.1", "a whole number expected"),
        ("model.optim.lr=1,0e-6", "a number expected, not several values"),
        ("model.optim.lr=it's", "model.optim.lr=it's: a number expected"),
        (f"{TRAIN}=pairs.jsonl", f"a list expected, such as {TRAIN}=[pairs.jsonl]"),
        (f"{TRAIN}=[null]", "a list of single values expected"),
        ("model.peft.lora_tuning.target_modules=[[]]", "a list of single values expected"),
        ("model.dpo=3", "a setting in it, such as model.dpo.ref_policy_kl_penalty"),
        (f"{FOLDER}=true", "a string expected, but Hydra reads True"),
        ("model.seed=" + "9" * 5000, "a whole number expected"),
        ("model.optim.lr=1" + "0" * 400, "a number expected"),
    ],
)
def test_problems_are_explained_in_our_own_words(override, expected):
    message = problem(override)
    assert expected in message
    assert len(message) < 400


@pytest.mark.parametrize(
    ("value", "known", "hint"),
    [
        ("AdamW", ["adam", "adamw", "sgd"], "adamw"),
        ("paged_adamw_8bit", ["adam", "adamw", "sgd"], "adamw"),
        ("CosineAnnealing", ["linear", "cosine"], "cosine"),
        ("bf16", ["32-true", "bf16-mixed"], "bf16-mixed"),
        ("MinorDPO", ["dpo", "minordpo"], "minordpo"),
    ],
)
def test_names_are_compared_ignoring_case(value, known, hint):
    assert config.closest(value, known) == f"; did you mean {hint!r}?"


def test_no_suggestion_without_a_similar_name():
    assert config.closest("sigmoid", ["dpo", "ipo"]) == ""
    assert config.unknown_key("trainer.dpo.zzz") == "trainer.dpo.zzz is not a setting"


def load(*overrides):
    return config.load(config.compose([*REQUIRED, *overrides]))


@pytest.mark.parametrize("plus", ["", "+", "++"])
def test_plus_signs_are_optional(plus):
    loaded = load(
        f"{plus}model.seed=7",
        f"{plus}exp_manager.wandb_logger_kwargs.project=mine",
        f"{plus}exp_manager.create_wandb_logger=true",
    )
    assert loaded.model.seed == 7
    assert loaded.exp_manager.wandb_logger_kwargs == {"project": "mine"}


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (f"{FOLDER}=", "a string expected"),
        (f"{TRAIN}=['']", "a string expected"),
        ("model.dpo.reference_cache=''", "use null for no value"),
        ("model.seed=99999999999999999999", "a number up to 2147483647 expected"),
        (f"{FOLDER}=${{HOME}}/x", r"\$\{oc.env:NAME\} an environment variable"),
        (f"{FOLDER}=${{oc.env:NO_SUCH_VARIABLE}}", "NO_SUCH_VARIABLE"),
        ("model.optim.lr=${model.optim.lr}", "model.optim.lr: Recursive"),
        ("exp_manager.max_time_per_run='00:00:00:²'", "DD:HH:MM:SS expected"),
        ("exp_manager.max_time_per_run=" + "9" * 5000 + ":00:00:00", "DD:HH:MM:SS expected"),
    ],
)
def test_obvious_oversights_are_rejected(override, expected):
    with pytest.raises(UserError, match=expected):
        load(override)


OVERRIDES = st.builds(
    "{}{}={}".format,
    st.sampled_from(["", "+", "++", "~"]),
    st.sampled_from(sorted(SETTINGS)),
    st.one_of(TEXTS, SCALARS.map(str), SCALARS.map(config.hydra_value)),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(OVERRIDES, TEXTS), min_size=1, max_size=3))
def test_any_input_gives_settings_or_a_user_error(overrides):
    with contextlib.suppress(UserError):
        assert dataclasses.is_dataclass(load(*overrides))
