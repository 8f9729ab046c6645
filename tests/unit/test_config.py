import dataclasses

import pytest
from omegaconf import OmegaConf

from nemo_minordpo import config

REQUIRED = [
    "pretrained_checkpoint.restore_from_path=base.nemo",
    "model.data.data_prefix.train=[train.jsonl]",
    "exp_manager.explicit_log_dir=run",
    "model.dpo.ref_policy_kl_penalty=0.1",
]


def load(*overrides, required=REQUIRED):
    return config.load(config.compose([*required, *overrides]))


def test_defaults_are_the_papers_settings():
    loaded = load()
    assert loaded.model.dpo.preference_loss == "minordpo"
    assert loaded.model.dpo.dpop_lambda == 50.0
    assert loaded.model.global_batch_size == 128
    assert loaded.model.optim.lr == 1e-6
    assert (loaded.model.optim.sched.name, loaded.model.optim.sched.warmup_ratio) == ("linear", 0.1)
    assert loaded.trainer.dpo.max_epochs == 1
    assert loaded.model.micro_batch_size == 1
    assert (loaded.model.dpo.reference_log_probs, loaded.model.dpo.reference_cache) == ("cached", None)


@pytest.mark.parametrize("pairs", [1, 7, 12])
def test_any_global_batch_size_is_allowed(pairs):
    assert load("trainer.devices=8", f"model.global_batch_size={pairs}").model.global_batch_size == pairs


@pytest.mark.parametrize("name", [*config.LOSS_NAMES, "my_losses:simpo", "my.package.losses:simpo"])
def test_the_command_line_selects_the_loss(name):
    assert load(f"model.dpo.preference_loss={name}").model.dpo.preference_loss == name


@pytest.mark.parametrize("text", ["{minordpo:1.0,sft:0.1}", "{minordpo: 1, sft: 0.1}"])
def test_the_command_line_mixes_losses(text):
    mixed = load(f"model.dpo.preference_loss={text}")
    assert mixed.model.dpo.preference_loss == {"minordpo": 1.0, "sft": 0.1}
    assert config.weights_of(mixed.model.dpo) == {"minordpo": 1.0, "sft": 0.1}
    assert config.loss_label(mixed.model.dpo.preference_loss) == "minordpo + 0.1 sft"
    assert config.identity(mixed)["model.dpo.preference_loss.sft"] == 0.1
    assert config.decides("model.dpo.preference_loss.sft")


def test_weights_of_an_objective():
    def weights(*overrides):
        return config.weights_of(load(*overrides).model.dpo)

    assert weights() == {"minordpo": 1.0}
    assert weights("model.dpo.sft_loss_weight=0.5") == {"minordpo": 1.0, "sft": 0.5}
    assert weights("model.dpo.preference_loss_weight=0", "model.dpo.sft_loss_weight=1") == {"minordpo": 0.0, "sft": 1.0}
    mix = "model.dpo.preference_loss={dpo:3,sft:1}"
    assert weights(mix, "model.dpo.preference_loss_weight=2", "model.dpo.sft_loss_weight=0.5") == {
        "dpo": 6.0,
        "sft": 2.5,
    }
    assert config.loss_label({"dpo": 0.5}) == "0.5 dpo"


def test_a_floor_and_averages_do_not_go_together():
    load("model.dpo.minordpo_floor=-2")
    with pytest.raises(ValueError, match=r"minordpo_floor=-2.0 is in nats of a whole response: it does not work with"):
        load("model.dpo.minordpo_floor=-2", "model.dpo.preference_average_log_probs=true")


def test_every_config_file_composes():
    groups = {
        folder.name: sorted(file.stem for file in folder.glob("*.yaml"))
        for folder in config.CONF.iterdir()
        if folder.is_dir() and folder.name != "experiment"
    }
    composed = [load(f"{group}={name}") for group, names in groups.items() for name in names]
    assert set(groups) >= {"loss", "precision"}
    assert len(composed) >= 5
    assert load("loss=dpop").model.dpo.preference_loss == "dpop"
    assert load("precision=bf16").model.megatron_amp_O2 is True


@pytest.mark.parametrize("missing", range(len(REQUIRED)))
def test_missing_required_settings_are_reported(missing):
    key = REQUIRED[missing].partition("=")[0]
    with pytest.raises(ValueError, match=f"{key} is required"):
        load(required=[item for item in REQUIRED if not item.startswith(key)])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.dpo.preference_loss=minordop", "did you mean 'minordpo'"),
        ("model.dpo.preference_loss=kto", "known: dpo, dpop, minordpo, ipo"),
        (
            "model.dpo.preference_loss={minordpo:1,sfd:0.1}",
            "preference_loss: 'sfd' is unknown; known: dpo, dpop, minord",
        ),
        ("model.dpo.preference_loss={minordpo:1,sfd:0.1}", "did you mean 'sft'?"),
        ("model.dpo.preference_loss={my_losses.f:1}", "package.module:function cannot be mixed: call the other losses"),
        (
            "model.dpo.preference_loss={minordpo:1,sft:-0.1}",
            "preference_loss.sft=-0.1: a weight >= 0 expected, such as model.dpo.preference_loss={dpo: 1.0, sft: 0.1}",
        ),
        ("model.dpo.preference_loss={minordpo:one}", "preference_loss.minordpo=one: a weight >= 0 expected"),
        ("model.dpo.preference_loss={minordpo:null}", "preference_loss.minordpo=None: a weight >= 0 expected"),
        ("model.dpo.preference_loss={minordpo:true}", "preference_loss.minordpo=True: a weight >= 0 expected"),
        ("model.dpo.preference_loss={minordpo:inf}", "preference_loss.minordpo=inf: a finite number expected"),
        ("model.dpo.preference_loss={minordpo:0,sft:0}", "every weight is 0: there is no loss to train"),
        ("model.dpo.preference_loss={}", "preference_loss={}: a name, or names with weights, expected, such as"),
        ("model.dpo.preference_loss=[dpo,sft]", "a name, or names with weights, expected, such as"),
        ("model.dpo.preference_loss=null", "preference_loss=None: a name, or names with weights, expected"),
        ("model.dpo.preference_loss=3", "preference_loss=3: a name, or names with weights, expected"),
        ("model.dpo.label_smoothing=0.5", "label_smoothing=0.5 must be in [0, 0.5)"),
        ("model.dpo.bdpo_lambda=1", "bdpo_lambda=1.0 must be in (0, 1)"),
        ("model.dpo.dpo_shift_lambda=0", "dpo_shift_lambda=0.0 must be in (0, 1)"),
        ("model.dpo.ref_policy_kl_penalty=0", "beta must be > 0"),
        ("model.dpo.ref_policy_kl_penalty=-0.1", "beta must be > 0"),
        ("model.dpo.ref_policy_kl_penalty=nan", "beta must be > 0"),
        ("model.dpo.betta=1", "model.dpo.betta is not a setting"),
        (
            "+model.dpo.preference_los=dpo",
            "model.dpo.preference_los is not a setting; did you mean model.dpo.preference_loss?",
        ),
        ("+trainer.dpo.max_step=3", "did you mean trainer.dpo.max_steps?"),
        ("+typo=1", "typo is not a setting"),
        ("model.dpo.dpop_lambda=-1", "dpop_lambda=-1.0 must be >= 0"),
        ("model.dpo.preference_loss_weight=0", "there is no loss"),
        ("model.optim.lr=0", "model.optim.lr=0.0 must be > 0"),
        ("model.optim.lr=fast", "model.optim.lr=fast: a number expected"),
        ("model.optim.name=adamww", "did you mean 'adamw'"),
        ("model.optim.name=sgd", "model.optim.betas is for Adam"),
        ("model.optim.betas=[0.9]", "2 numbers in [0, 1)"),
        ("model.optim.momentum=0.9", "is for model.optim.name=sgd only"),
        ("model.optim.sched.name=cosinus", "did you mean 'cosine'"),
        ("model.optim.sched.warmup_ratio=1.0", "must be in [0, 1)"),
        ("model.optim.sched.min_lr=1", "min_lr=1.0 must be between"),
        ("model.global_batch_size=0", "model.global_batch_size=0 must be >= 1"),
        ("model.micro_batch_size=2", "model.data.packed_sequence_size sets how many tokens it holds"),
        ("model.micro_batch_size=0", "a micro-batch is one row of packed pairs"),
        ("model.data.packed_sequence_size=1", "packed_sequence_size=1 must be >= 2 tokens"),
        ("model.dpo.reference_log_probs=cache", "reference_log_probs='cache' is unknown; known: cached, live"),
        ("trainer.precision=fp8", "trainer.precision='fp8' is unknown"),
        ("trainer.accelerator=tpu", "known: auto, cpu, gpu"),
        ("trainer.dpo.max_steps=0", "max_steps=0 must be >= 1 steps, or -1 (no limit)"),
        ("trainer.dpo.max_epochs=0", "max_epochs=0 must be >= 1"),
        ("trainer.dpo.save_interval=-1", "save_interval=-1 must be >= 0 steps"),
        ("trainer.dpo.limit_val_batches=0", "limit_val_batches=0 must be >= 1, or null (the whole set)"),
        ("exp_manager.checkpoint_callback_params.keep_last=0", "keep_last=0 must be >= 1"),
        ("exp_manager.checkpoint_callback_params.save_top_k=-1", "save_top_k=-1 must be >= 0"),
        ("exp_manager.checkpoint_callback_params.mode=best", "known: min, max"),
        ("exp_manager.max_time_per_run=4h", "exp_manager.max_time_per_run='4h': DD:HH:MM:SS expected"),
        ("exp_manager.max_time_without_progress=1:00", "max_time_without_progress='1:00': DD:HH:MM:SS expected"),
        (
            "exp_manager.max_time_without_progress=00:00:00:00",
            "='00:00:00:00' must be longer than 0, or null (no limit)",
        ),
        ("model.data.data_prefix.train=[]", "name at least one jsonl file"),
        (
            "model.dpo.preference_loss=my_losses",
            "simpo, sft, or one of your own as package.module",
        ),
        ("model.dpo.preference_loss='my losses:f'", "or one of your own as package.module:function"),
        ("model.peft.lora_tuning.target_modules=[conv]", "target_modules=['conv']: some of attention_qkv, "),
        ("model.peft.lora_tuning.target_modules=[]", "target_modules=[]: name at least one linear layer"),
        (
            "trainer.dpo.watch.max_new_tokens=8",
            ">= 24 tokens (repetition cannot be detected in shorter answers)",
        ),
        ("model.data.invalid_pairs=ignore", "known: refuse, drop"),
        ("model.data.seq_length=1", "seq_length=1 must be >= 2 tokens"),
        ("model.seed=0", "model.seed=0 must be >= 1 (required by NeMo)"),
        ("loss=minor", "loss=minor: one of dpo, dpop, minordpo expected; did you mean 'minordpo'"),
        ("model.dpo", "'model.dpo': settings are written KEY=VALUE"),
    ],
)
def test_bad_settings_are_explained(override, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        load(override)
    assert message in str(error.value)


def number_settings(section=config.TrainConfig, prefix=""):
    """Every setting that accepts a float, and a template for writing one."""
    for item in dataclasses.fields(section):
        if dataclasses.is_dataclass(item.type):
            yield from number_settings(item.type, f"{prefix}{item.name}.")
        elif item.type is float or item.type == float | None:
            yield f"{prefix}{item.name}", "{}"
        elif item.type == list[float] | None:
            yield f"{prefix}{item.name}", "[0.9,{}]"


NUMBERS = dict(number_settings())


@pytest.mark.parametrize(
    ("value", "shown"), [("nan", "nan"), ("inf", "inf"), ("-inf", "-inf"), ("Infinity", "inf"), ("1e999", "inf")]
)
def test_every_number_must_be_finite(value, shown):
    with pytest.raises(ValueError, match="a finite number expected") as error:
        load(*(f"{key}={form.format(value)}" for key, form in NUMBERS.items()))
    expected = {f"{key}={shown}: a finite number expected" for key in NUMBERS}
    assert expected == {line for line in str(error.value).splitlines() if line.endswith("a finite number expected")}


def test_numbers_are_checked_wherever_they_occur():
    assert len(NUMBERS) >= 14
    assert {"model.optim.betas", "model.optim.sched.min_lr", "trainer.dpo.gradient_clip_val"} <= NUMBERS.keys()
    with pytest.raises(ValueError, match=r"^model.rope.scale=inf: a finite number expected$"):
        load("+model.rope={scale: inf, base: 1e300}")
    with pytest.raises(ValueError, match=r"^exp_manager.wandb_logger_kwargs.config.x=nan: a finite number expected$"):
        load(
            "exp_manager.create_wandb_logger=true",
            "exp_manager.wandb_logger_kwargs={config: {x: [1.0, nan]}, name: nan_is_a_word}",
        )
    assert load("+model.rope={scale: 1e300}", "model.optim.lr=1e30").model.optim.lr == 1e30


def test_all_faults_are_reported_at_once():
    with pytest.raises(ValueError, match="beta must be > 0") as error:
        load("model.dpo.ref_policy_kl_penalty=0", "model.seed=0", "trainer.dpo.max_epochs=0")
    assert len(str(error.value).splitlines()) == 3


def test_keys_of_the_checkpoint_are_separated():
    assert load("+model.hidden_dropout=0.1").checkpoint_overrides == {"hidden_dropout": 0.1}


@pytest.mark.parametrize("loss", ["dpo", "{minordpo:1.0,sft:0.1}"])
def test_a_saved_configuration_loads_unchanged(tmp_path, loss):
    loaded = load("+model.hidden_dropout=0.1", "model.optim.sched.warmup_steps=3", f"model.dpo.preference_loss={loss}")
    OmegaConf.save(OmegaConf.structured(loaded), tmp_path / "config.yaml")
    assert config.load(OmegaConf.load(tmp_path / "config.yaml")) == loaded


def test_identity_covers_what_a_run_computes_not_where():
    base = config.identity(load())
    same = config.identity(
        load(
            "trainer.devices=8",
            "model.tensor_model_parallel_size=2",
            "model.sequence_parallel=true",
            "model.activations_checkpoint_granularity=full",
            "model.data.packed_sequence_size=2048",
            "model.dpo.reference_cache=elsewhere",
            "trainer.dpo.save_interval=7",
            "trainer.dpo.watch.interval=7",
            "exp_manager.explicit_log_dir=other",
        )
    )
    others = ("model.dpo.ref_policy_kl_penalty=0.2", "model.optim.sched.min_lr=1e-7", "trainer.dpo.watch.num_prompts=9")
    other = config.identity(load(*others))
    assert same == base
    assert {key for key in base if base[key] != other[key]} == {
        "model.dpo.ref_policy_kl_penalty",
        "model.optim.sched.min_lr",
        "trainer.dpo.watch.num_prompts",
    }


@pytest.mark.parametrize(("text", "seconds"), [("00:00:00:05", 5), ("01:02:03:04", 93784)])
def test_durations(text, seconds):
    assert config.duration_in_seconds(text) == seconds


def test_changed_settings_that_the_loss_ignores_are_reported():
    unread = ["model.dpo.dpop_lambda=5", "model.dpo.gt_reward_scale=2"]
    assert config.unread_notes(load(*unread)) == [
        "model.dpo.dpop_lambda=5.0 has no effect on minordpo; it is read by dpop",
        "model.dpo.gt_reward_scale=2.0 has no effect on minordpo; it is read by rpo_sq, rpo_bwd_kl, rpo_fwd_kl",
    ]
    assert len(config.unread_notes(load("loss=dpop", *unread))) == 1
    (note,) = config.unread_notes(load("model.dpo.preference_loss={minordpo:1,dpop:0.5}", *unread))
    assert note.startswith("model.dpo.gt_reward_scale=2.0 has no effect on minordpo + 0.5 dpop; it is read by rpo_sq, ")
    assert config.unread_notes(load("model.dpo.preference_loss=mine:loss", *unread)) == []
    live = ["model.dpo.reference_log_probs=live", "model.dpo.preference_average_log_probs=true"]
    assert config.unread_notes(load("model.dpo.preference_loss=simpo", *live)) == [
        "model.dpo.preference_average_log_probs=True has no effect on simpo; it is read by all but simpo, sft",
        "model.dpo.reference_log_probs=live has no effect on simpo; it is read by all but simpo, sft",
    ]
    assert config.unread_notes(load(*live, "model.dpo.sft_average_log_probs=true")) == [
        "model.dpo.sft_average_log_probs=True has no effect on minordpo; it is read by sft"
    ]
    assert config.unread_notes(load("model.dpo.sft_loss_weight=1", "model.dpo.sft_average_log_probs=true")) == []
    assert config.unread_notes(load("model.dpo.preference_loss=sft")) == []  # beta must be given
    assert config.unread_notes(load()) == []


def test_every_default_is_allowed_and_every_null_is_explained():
    assert len(config.DECLARED) >= 70
    for key, setting in config.DECLARED.items():
        assert setting.help
        default = config.default_of(key)
        if isinstance(default, int | float) and default not in setting.special:
            assert setting.allows(default), key
        if setting.choices and isinstance(default, str):
            assert default in setting.choices, key
        assert set(setting.losses) <= set(config.LOSS_NAMES)
        assert default is not None or None in setting.special, f"{key}: the meaning of null is missing"
