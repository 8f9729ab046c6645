"""Errors reported before any rank is started."""

import copy

import pytest
from omegaconf import OmegaConf

from nemo_minordpo.pairs.tokens import load_arrays
from nemo_minordpo.train.data.dataset import segment_lengths_of
from nemo_minordpo.train.folder.run_folder import RunFolder
from nemo_minordpo.train.launch import prepare_run, read_settings

from .conftest import pair
from .test_model_config import CHECKPOINT

PAIRS = [pair(), pair(chosen="4, and that is all there is to say", rejected="it may well be 5, it may be 6")]


@pytest.fixture
def prepare(tmp_path, tokenizer, write):
    """Prepare a run on PAIRS; validation has one more pair, which is longer."""
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "base").mkdir()
    named = {"library": "huggingface", "type": str(tmp_path / "tokenizer")}
    OmegaConf.save(OmegaConf.create({**CHECKPOINT, "tokenizer": named}), tmp_path / "base/model_config.yaml")
    longer = pair(chosen="4 " * 40, rejected="5 " * 40)
    files = {"train": write(*PAIRS), "validation": write(*PAIRS, longer, name="validation.jsonl")}

    def run(*overrides, splits=("train",)):
        given = [
            f"pretrained_checkpoint.restore_from_path={tmp_path}/base", f"exp_manager.explicit_log_dir={tmp_path}/run",
            "model.dpo.ref_policy_kl_penalty=0.1",
            *(f"model.data.data_prefix.{split}=[{files[split]}]" for split in splits), *overrides,
        ]  # fmt: skip
        prepare_run(read_settings(given))
        return RunFolder(tmp_path / "run")

    return run


def test_a_row_must_hold_the_largest_pair(prepare, tmp_path):
    lengths = segment_lengths_of(load_arrays(prepare().data("train")))
    longest = int(lengths.max())
    assert longest > lengths.min()
    for size, fits in ((longest - 1, False), (longest, True)):
        run = f"exp_manager.explicit_log_dir={tmp_path}/run_{size}"
        if fits:
            prepare(run, f"model.data.packed_sequence_size={size}")
            continue
        with pytest.raises(ValueError, match="the largest of the train pairs needs") as error:
            prepare(run, f"model.data.packed_sequence_size={size}")
        assert f"needs {longest} tokens of a row; set model.data.packed_sequence_size={longest}" in str(error.value)
        assert not (tmp_path / f"run_{size}/config.yaml").exists()


def test_a_tokenizer_without_eos_is_refused_with_the_setting_that_names_it(prepare, tokenizer, tmp_path):
    without = copy.deepcopy(tokenizer)
    without.eos_token = None
    without.save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(ValueError, match="has no EOS token") as error:
        prepare()
    assert str(error.value).count(f"{tmp_path}/tokenizer") == 2
    assert str(error.value).startswith(f"model.tokenizer.type={tmp_path}/tokenizer, ")
    assert not (tmp_path / "run/config.yaml").exists()


def test_the_runs_own_tokenizer_is_complete_and_copied_once(prepare, tmp_path):
    folder = prepare().path
    copied = folder / "model.tokenizer"
    assert (copied / "tokenizer.json").read_bytes() == (tmp_path / "tokenizer/tokenizer.json").read_bytes()
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []
    (copied / "tokenizer.json").write_text("the run's own")
    assert (prepare().path / "model.tokenizer/tokenizer.json").read_text() == "the run's own"


def test_a_pair_with_shared_tokens_needs_less_than_its_two_sequences(prepare):
    arrays = load_arrays(prepare().data("train"))
    assert (segment_lengths_of(arrays) < sum(arrays.sequence_lengths) - arrays.prompt_lengths).all()


def test_validation_pairs_count_too(prepare, tmp_path):
    size = int(segment_lengths_of(load_arrays(prepare().data("train"))).max())
    more = [f"model.data.packed_sequence_size={size}", f"exp_manager.explicit_log_dir={tmp_path}/another"]
    with pytest.raises(ValueError, match="the largest of the validation pairs needs"):
        prepare(*more, splits=("train", "validation"))


def test_a_run_that_resumes_with_smaller_rows_is_checked_again(prepare):
    prepare()
    with pytest.raises(ValueError, match="the largest of the train pairs needs"):
        prepare("model.data.packed_sequence_size=8")


@pytest.mark.parametrize("split", ["train", "validation"])
def test_token_ids_in_the_vocabularys_padding_are_refused(prepare, tokenizer, tmp_path, split):
    """An embedding of 512 rows for a vocabulary with one token fewer than the pairs use."""
    largest = int(load_arrays(prepare(splits=("train", "validation")).data(split)).tokens.max())

    def with_vocabulary(size):
        config = OmegaConf.load(tmp_path / "base/model_config.yaml")
        OmegaConf.save({**config, "unpadded_vocab_size": size}, tmp_path / "base/model_config.yaml")
        prepare(f"exp_manager.explicit_log_dir={tmp_path}/run_{size}", splits=("train", "validation"))

    text = tokenizer.convert_ids_to_tokens(largest)
    with pytest.raises(ValueError, match=f"token id {largest} ") as error:
        with_vocabulary(largest)
    for words in (repr(text), f"vocabulary of {largest} tokens", f"tokenizer has {len(tokenizer)}"):
        assert words in str(error.value)
    assert not (tmp_path / f"run_{largest}/config.yaml").exists()
    with_vocabulary(largest + 1)


@pytest.mark.parametrize("embedding", ["rope", "learned_absolute"])
def test_pairs_beyond_the_models_context(prepare, tmp_path, capsys, embedding):
    longest = max(int(lengths.max()) for lengths in load_arrays(prepare().data("train")).sequence_lengths)

    def with_context(size):
        config = OmegaConf.load(tmp_path / "base/model_config.yaml")
        context = {"max_position_embeddings": size, "position_embedding_type": embedding}
        OmegaConf.save({**config, **context}, tmp_path / "base/model_config.yaml")
        capsys.readouterr()
        prepare(f"exp_manager.explicit_log_dir={tmp_path}/run_{size}")
        return capsys.readouterr().err

    words = f"1 of 2 train pairs are longer than the model's context of {longest - 1} tokens"
    if embedding == "rope":
        assert words in with_context(longest - 1)
    else:
        with pytest.raises(ValueError, match=words):
            with_context(longest - 1)
    assert "context" not in with_context(longest)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["monitor=rewards/accurcy"], r"did you mean 'rewards/accuracy'"),
        (["save_top_k=1"], r"needs validation pairs"),
    ],
)
def test_unknown_metrics_for_choosing_checkpoints_are_refused(prepare, settings, message):
    with pytest.raises(ValueError, match=message):
        prepare(*(f"exp_manager.checkpoint_callback_params.{setting}" for setting in settings))
    prepare("exp_manager.checkpoint_callback_params.save_top_k=1", splits=("train", "validation"))
