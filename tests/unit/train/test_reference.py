"""Cached reference log-probabilities: their key, what is refused, and which run evaluates if several need them."""

import dataclasses
import json
import os
import shutil
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from nemo_minordpo import provenance
from nemo_minordpo.config import compose, load
from nemo_minordpo.host import cuda
from nemo_minordpo.train import reference_cache
from nemo_minordpo.train.folder.run_folder import RunFolder
from nemo_minordpo.train.reference import evaluate_reference, noise_of_reference
from nemo_minordpo.train.reference_cache import (
    ReferenceCache,
    ReferenceKey,
    load_or_evaluate,
    reference_folder,
    reference_key,
)
from nemo_minordpo.train.require_finite import NotFiniteError

from .arrays import PAIRS, batches_of

KEY = ReferenceKey(
    weights="of the weights",
    tokenizer="of the tokenizer",
    pairs="of the pairs",
    settings={"model.data.seq_length": 128, "trainer.precision": "32-true"},
    code="of the code",
)
VALUES = np.asarray([[-1.5, -2.5], [-3.25, -1e-300], [-5.0, -6.0]])


def with_another(name):
    """The key with a different value for one of its names."""
    value = KEY.in_words[name]
    other = value + 1 if isinstance(value, int) else f"{value} "
    if name in KEY.settings:
        return dataclasses.replace(KEY, settings={**KEY.settings, name: other})
    return dataclasses.replace(KEY, **{name: other})


@pytest.fixture
def cache(tmp_path):
    (tmp_path / "cache").mkdir()
    return ReferenceCache(tmp_path / "cache")


@pytest.fixture
def filled(cache):
    cache.write(KEY, VALUES, layout="TP=1")
    return cache


def columns_of(cache, key=KEY):
    return cache.folder / f"{key.digest}.safetensors"


def description_of(cache, key=KEY):
    return cache.folder / f"{key.digest}.json"


def test_the_digest_depends_on_every_field_and_setting():
    digests = [KEY.digest, *(with_another(name).digest for name in KEY.in_words)]
    assert len(KEY.in_words) == len(dataclasses.fields(ReferenceKey)) - 1 + len(KEY.settings)
    assert len(set(digests)) == len(digests)
    assert dataclasses.replace(KEY).digest == KEY.digest


def test_an_entry_round_trips(filled):
    assert filled.has(KEY)
    values = filled.read(KEY, num_pairs=3)
    assert values.dtype == np.float64
    assert (values == VALUES).all()
    assert sorted(path.name for path in filled.folder.iterdir()) == sorted(
        [f"{KEY.digest}.json", f"{KEY.digest}.safetensors"]
    )
    description = json.loads(description_of(filled).read_text())
    assert description["key"] == KEY.in_words
    assert (description["num_pairs"], description["evaluated_at"]) == (3, "TP=1")


def test_non_contiguous_arrays_can_be_written(cache):
    cache.write(KEY, np.asfortranarray(np.repeat(VALUES, 2, axis=1))[:, ::2], layout="TP=1")
    assert (cache.read(KEY, num_pairs=3) == VALUES).all()


def test_an_entry_without_its_description_does_not_exist(filled):
    description_of(filled).unlink()
    assert columns_of(filled).exists()
    assert not filled.has(KEY)


@pytest.mark.parametrize(
    "step", ["train.reference_cache.save", "files.os.fsync", "files.os.replace", "train.reference_cache.write_json"]
)
def test_an_interrupted_write_leaves_no_entry(cache, monkeypatch, step):
    def stop(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"nemo_minordpo.{step}", stop)
        with pytest.raises(KeyboardInterrupt):
            cache.write(KEY, VALUES, layout="TP=1")
    assert not cache.has(KEY)
    cache.write(KEY, VALUES, layout="TP=1")
    assert (cache.read(KEY, num_pairs=3) == VALUES).all()


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("damage", [flip_a_bit, cut, Path.unlink, lambda path: path.write_bytes(b"")])
def test_damaged_columns_are_refused(filled, damage):
    damage(columns_of(filled))
    with pytest.raises(ValueError, match="is damaged") as error:
        filled.read(KEY, num_pairs=3)
    assert str(columns_of(filled)) in str(error.value)
    assert "to evaluate it again" in str(error.value)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"key"',
        b"[]",
        b"{}",
        b"3",
        b'{"key": {}}',
        b'{"key": "x", "sha256": ""}',
        b'{"sha256": ""}',
        b"\xff\xfe{}",
    ],
)
def test_an_unreadable_description_is_refused(filled, content):
    description_of(filled).write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read") as error:
        filled.read(KEY, num_pairs=3)
    assert str(description_of(filled)) in str(error.value)
    assert "to evaluate it again" in str(error.value)


@pytest.mark.parametrize("field", KEY.in_words)
def test_an_entry_named_by_another_key_is_refused_as_stale(filled, field):
    wanted = with_another(field)
    for place in (columns_of, description_of):
        place(filled).rename(place(filled, wanted))
    assert filled.has(wanted)
    with pytest.raises(ValueError, match="is stale") as error:
        filled.read(wanted, num_pairs=3)
    differing = [line for line in str(error.value).splitlines() if " there, " in line]
    assert len(differing) == 1
    assert differing[0].startswith(f"  {field}: ")


@pytest.mark.parametrize("num_pairs", [0, 2, 4])
def test_a_wrong_number_of_pairs_is_refused(filled, num_pairs):
    with pytest.raises(ValueError, match=rf"{num_pairs} finite pairs expected, not \(3, 2\)"):
        filled.read(KEY, num_pairs=num_pairs)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [(0, 0), (2, 1)])
def test_values_that_are_not_finite_are_refused(cache, value, place):
    values = VALUES.copy()
    values[place] = value
    cache.write(KEY, values, layout="TP=1")
    with pytest.raises(ValueError, match="3 finite pairs expected"):
        cache.read(KEY, num_pairs=3)


def test_why_an_entry_is_missing(cache):
    assert cache.why_missing(KEY) == "nothing cached yet"
    cache.write(dataclasses.replace(KEY, weights="w", pairs="p", code="c"), VALUES, layout="TP=1")
    assert cache.why_missing(KEY) == "the most similar of 1 cached entries differs in: code, pairs, weights"
    other = {"model.data.seq_length": 64, "trainer.precision": "bf16-mixed"}
    cache.write(dataclasses.replace(KEY, settings=other), VALUES, layout="TP=1")
    other = {**other, "checkpoint_overrides": {"rotary_base": 1000}}
    cache.write(dataclasses.replace(KEY, pairs="p", settings=other), VALUES, layout="TP=1")
    (cache.folder / "notes.json").write_text("not an entry")
    (cache.folder / "list.json").write_text("[]")
    differing = "model.data.seq_length, trainer.precision"
    assert cache.why_missing(KEY) == f"the most similar of 3 cached entries differs in: {differing}"


BASE = [
    "model.data.data_prefix.train=[train.jsonl]",
    "exp_manager.explicit_log_dir=run",
    "model.dpo.ref_policy_kl_penalty=0.1",
]


def settings(*overrides):
    given = ["pretrained_checkpoint.restore_from_path=base.nemo", *BASE, *overrides]
    return load(compose(given))


def key_of_run(folder, *overrides, inputs=("weights", "tokenizer"), arrays=None, model_config=None):
    """The key of a new run folder, with the given arrays for the train split."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    files = {name: folder.parent / name for name in ("reference", "tokenizer", "train")}
    for path, content in zip(files.values(), [*inputs, "pairs"], strict=True):
        path.write_text(content)
    run = RunFolder(folder)
    names = ("tokens", "starts", "prompt_lengths", "shared_lengths", "reward_margins")

    def make_data():
        run.data("train").mkdir(parents=True)
        for name in names:
            np.save(run.data("train") / f"{name}.npy", np.asarray((arrays or {}).get(name, [1, 2, 3])))

    config = settings(*overrides)
    run.prepare(config, inputs={name: [path] for name, path in files.items()}, make_data=make_data)
    return reference_key(config, run, "train", {"megatron_amp_O2": False, **(model_config or {})})


def differing_fields(one, other):
    keys = one.in_words.keys() | other.in_words.keys()
    return [name for name in keys if one.in_words.get(name) != other.in_words.get(name)]


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("weights", {"inputs": ("other weights", "tokenizer")}),
        ("tokenizer", {"inputs": ("weights", "other tokenizer")}),
        ("pairs", {"arrays": {"tokens": [1, 2, 4]}}),
        ("pairs", {"arrays": {"starts": [1, 2, 4]}}),
        ("pairs", {"arrays": {"prompt_lengths": [1, 2, 4]}}),
        ("model.data.seq_length", {"overrides": ["model.data.seq_length=99"]}),
        ("trainer.precision", {"overrides": ["trainer.precision=bf16-mixed"]}),
        ("model.megatron_amp_O2", {"model_config": {"megatron_amp_O2": True}}),
        ("model.transformer_engine", {"model_config": {"transformer_engine": True}}),
        ("model.fp8", {"model_config": {"fp8": True}}),
        ("model.fp8_hybrid", {"model_config": {"fp8_hybrid": True}}),
        ("model.fp8_margin", {"model_config": {"fp8_margin": 1}}),
        ("model.fp8_amax_history_len", {"model_config": {"fp8_amax_history_len": 16}}),
        ("model.fp8_amax_compute_algo", {"model_config": {"fp8_amax_compute_algo": "max"}}),
    ],
)
def test_the_key_includes_everything_the_log_probabilities_depend_on(tmp_path, field, change):
    overrides = change.pop("overrides", [])
    base, changed = key_of_run(tmp_path / "run"), key_of_run(tmp_path / "run", *overrides, **change)
    assert differing_fields(base, changed) == [field]


def test_the_key_includes_changes_to_the_checkpoints_configuration(tmp_path):
    base, changed = key_of_run(tmp_path / "run"), key_of_run(tmp_path / "run", "+model.rotary_base=1000")
    assert changed.in_words["checkpoint_overrides.rotary_base"] == 1000
    assert changed.digest != base.digest


def test_the_key_includes_nothing_else(tmp_path):
    others = [
        "model.dpo.preference_loss=dpo",
        "model.dpo.ref_policy_kl_penalty=0.3",
        "model.optim.lr=1e-3",
        "model.seed=5",
        "model.global_batch_size=7",
        "model.data.packed_sequence_size=2048",
        "trainer.devices=2",
        "model.tensor_model_parallel_size=2",
        "trainer.dpo.max_epochs=3",
    ]
    base = key_of_run(tmp_path / "run")
    assert key_of_run(tmp_path / "run", *others, arrays={"reward_margins": [0.5, 0.5, 0.5]}) == base


def test_another_version_of_the_code_changes_the_key(tmp_path, monkeypatch):
    base = key_of_run(tmp_path / "run")
    monkeypatch.setattr(provenance, "installed_versions", lambda: {"torch": "0.1"})
    packages = key_of_run(tmp_path / "run")
    assert differing_fields(base, packages) == ["code"]
    package = Path(provenance.__file__).parent
    shutil.copytree(package, tmp_path / "package", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "package" / "provenance.py"))
    assert key_of_run(tmp_path / "run") == packages  # the same code in another place
    for changed in (
        "core/logprobs.py",
        "host/fused.py",
        "host/matmul.py",
        "host/upstream.py",
        "train/model/pair_model.py",
    ):
        before = key_of_run(tmp_path / "run")
        with (tmp_path / "package" / changed).open("a") as file:
            file.write("\n")
        assert differing_fields(before, key_of_run(tmp_path / "run")) == ["code"]


def test_folder_of_the_entries():
    default = reference_folder(settings("exp_manager.explicit_log_dir=runs/one"))
    assert default == Path("runs/reference_cache").absolute()
    assert reference_folder(settings("model.dpo.reference_cache=shared/kept")) == Path("shared/kept")


@pytest.fixture
def one_rank(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(dist, "get_rank", lambda: 0)


def not_called():
    raise AssertionError("evaluated")


def test_an_entry_written_just_before_the_lock_is_acquired_is_read(one_rank, cache, monkeypatch):
    monkeypatch.setattr(dist, "broadcast", lambda tensor, src: None)
    make = cache.lock

    def lock_after_another_run(key):
        lock = make(key)
        acquire = lock.acquire
        lock.acquire = lambda **options: (cache.write(key, VALUES, layout="TP=1"), acquire(**options))
        return lock

    cache.lock = lock_after_another_run
    values = load_or_evaluate(cache, KEY, num_pairs=3, evaluate=not_called, layout="TP=1")
    assert (values == VALUES).all()


def test_a_damaged_entry_is_not_silently_evaluated_again(one_rank, filled, monkeypatch):
    monkeypatch.setattr(dist, "broadcast", lambda tensor, src: None)
    cut(columns_of(filled))
    with pytest.raises(ValueError, match="is damaged"):
        load_or_evaluate(filled, KEY, num_pairs=3, evaluate=not_called, layout="TP=1")


class Model:
    """Returns -pair for each pair's chosen response and -pair - 1/2 for its rejected one; None on earlier stages."""

    uses_fp8 = False

    def __init__(self, *, is_last_stage):
        self.is_last_stage, self.calls = is_last_stage, []

    @contextmanager
    def evaluating(self):
        self.calls.append("prepare")
        yield
        self.calls.append("finish")

    def get_logprob_batch(self, batch):
        self.calls.append("log-probabilities")
        pairs = [torch.from_numpy(micro.pairs).double() for micro in batch.micro_batches]
        return [torch.cat([-pair, -pair - 0.5]) if self.is_last_stage else None for pair in pairs]

    def gathered(self, values):
        self.calls.append("gathered")
        return 2 * values


@pytest.mark.parametrize("is_last_stage", [True, False])
def test_every_pair_of_a_split_is_evaluated(one_rank, is_last_stage):
    model = Model(is_last_stage=is_last_stage)
    values = evaluate_reference(model, batches_of(PAIRS, global_batch=3, capacity=9), title="")
    expected = 2 * np.asarray([[-0.0, -0.5], [-1.0, -1.5], [-2.0, -2.5], [-3.0, -3.5]])
    assert values.dtype == np.float64
    assert (values == (expected if is_last_stage else 0.0)).all()
    assert model.calls == ["prepare", "log-probabilities", "log-probabilities", "gathered", "finish"]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_log_probabilities_that_are_not_finite_are_not_cached(one_rank, cache, monkeypatch, value):
    monkeypatch.setattr(dist, "broadcast", lambda tensor, src: None)

    def load_with(model):
        batches = batches_of(PAIRS, global_batch=3, capacity=9)
        return load_or_evaluate(
            cache,
            KEY,
            num_pairs=4,
            evaluate=lambda: evaluate_reference(
                model, batches, title="reference of train pairs", places=lambda pairs: [f"line {n}" for n in pairs]
            ),
            layout="TP=1",
        )

    broken = Model(is_last_stage=True)
    broken.gathered = lambda values: values.index_put(
        (torch.tensor([1, 3]), torch.tensor([0, 1])), torch.tensor(value).double()
    )
    expected = r"^reference of train pairs: log-probabilities not finite for 2 of 4 pairs: line 1, line 3$"
    with pytest.raises(NotFiniteError, match=expected):
        load_with(broken)
    assert not list(cache.folder.glob("*.safetensors"))
    assert not cache.has(KEY)
    load_with(Model(is_last_stage=True))
    assert cache.has(KEY)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_noise_is_infinite_on_every_rank_if_a_value_is_not_finite(one_rank, monkeypatch, value):
    reduced = []
    monkeypatch.setattr(dist, "all_reduce", lambda tensor, op: reduced.append(tensor.item()))
    batch = next(batches_of(PAIRS, global_batch=3, capacity=9).in_file_order())
    references = Model(is_last_stage=True).get_logprob_batch(batch)
    references[0] = references[0].index_fill(0, torch.tensor([0]), value)
    assert noise_of_reference(Model(is_last_stage=True), batch.with_references(references), live=True) == np.inf
    assert reduced == [np.inf]  # a maximum over ranks may drop a NaN


@pytest.mark.parametrize("is_last_stage", [True, False])
def test_noise_is_the_largest_difference_per_response(one_rank, monkeypatch, is_last_stage):
    monkeypatch.setattr(dist, "all_reduce", lambda tensor, op: None)
    batch = next(batches_of(PAIRS, global_batch=3, capacity=9).in_file_order())
    references = Model(is_last_stage=True).get_logprob_batch(batch)
    model = Model(is_last_stage=is_last_stage)
    model.get_model_module_list = lambda: []
    assert noise_of_reference(model, batch.with_references(references), live=False) == 0.0
    references[-1] = references[-1] + torch.linspace(0.25, -0.75, len(references[-1]))
    assert noise_of_reference(model, batch.with_references(references), live=True) == (0.75 if is_last_stage else 0.0)


def test_a_rank_evaluates_its_share(one_rank):
    shares = [
        evaluate_reference(Model(is_last_stage=True), batches_of(PAIRS, capacity=9, rank=rank, size=2), title="")
        for rank in range(2)
    ]
    assert ((shares[0] == 0) | (shares[1] == 0)).all()
    assert (sum(shares)[:, 1] == [-1.0, -3.0, -5.0, -7.0]).all()


# Ranks are separate processes here, since the lock is between processes.


def start_rank(folder, group, *, rank=0, ranks=1):
    torch.set_num_threads(1)
    cuda.install()
    reference_cache._WAIT_S = 0.1
    dist.init_process_group("gloo", init_method=f"file://{folder}/{group}", rank=rank, world_size=ranks)
    return ReferenceCache(folder / "cache")


def note(folder, text):
    with (folder / "notes.txt").open("a") as out:
        out.write(f"{text}\n")


def notes_of(folder):
    return (folder / "notes.txt").read_text().split()


def in_processes(function, folder, number, *more):
    """Start processes that begin at the same time; returns their exit codes."""
    context = mp.get_context("spawn")
    together = context.Barrier(number)
    processes = [context.Process(target=function, args=(folder, index, together, *more)) for index in range(number)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
    for process in processes:
        process.kill()
        process.join()
    return [process.exitcode for process in processes]


def values_of(folder, number):
    return [np.load(folder / f"{index}.npy") for index in range(number)]


def race(folder, index, together):
    cache = start_rank(folder, f"group_{index}")

    def evaluate():
        note(folder, f"evaluated_by_{index}")
        time.sleep(1)
        return VALUES - index

    together.wait()
    np.save(folder / f"{index}.npy", load_or_evaluate(cache, KEY, num_pairs=3, evaluate=evaluate, layout="TP=1"))
    dist.destroy_process_group()


def test_one_of_two_runs_evaluates_and_both_get_the_values(tmp_path):
    assert in_processes(race, tmp_path, 2) == [0, 0]
    (line,) = notes_of(tmp_path)
    first, second = values_of(tmp_path, 2)
    assert (first == VALUES - int(line[-1])).all()
    assert (second == first).all()


def death(folder, index, together):
    """Process 0 dies while evaluating; process 1 arrives meanwhile."""
    cache = start_rank(folder, f"group_{index}")

    def evaluate():
        note(folder, f"evaluated_by_{index}")
        if index == 0:
            together.wait()
            time.sleep(1)
            os._exit(9)
        return VALUES

    if index == 1:
        together.wait()
    values = load_or_evaluate(cache, KEY, num_pairs=3, evaluate=evaluate, layout="TP=1")
    np.save(folder / "1.npy", values)
    dist.destroy_process_group()


def test_a_run_that_died_while_evaluating_does_not_block_others(tmp_path):
    assert in_processes(death, tmp_path, 2) == [9, 0]
    assert notes_of(tmp_path) == ["evaluated_by_0", "evaluated_by_1"]
    assert (np.load(tmp_path / "1.npy") == VALUES).all()


def ranks_of_a_run(folder, index, together):
    """The same run twice, on two ranks: the first evaluates, the second reads."""
    cache = start_rank(folder, "group", rank=index, ranks=2)
    make, made = cache.lock, []
    cache.lock = lambda key: made.append(make(key)) or made[-1]

    def evaluate():
        note(folder, f"evaluated_by_{index}")
        assert [lock.is_locked for lock in made] == [True] * (index == 0)
        values = torch.from_numpy(VALUES / 2)
        dist.all_reduce(values)
        return values.numpy()

    found = [load_or_evaluate(cache, KEY, num_pairs=3, evaluate=evaluate, layout="TP=2") for _ in range(2)]
    np.save(folder / f"{index}.npy", np.stack(found))
    assert [lock.is_locked for lock in made] == [False, False] * (index == 0)
    dist.destroy_process_group()


def test_all_ranks_of_a_run_evaluate_and_read_together(tmp_path):
    assert in_processes(ranks_of_a_run, tmp_path, 2) == [0, 0]
    assert sorted(notes_of(tmp_path)) == ["evaluated_by_0", "evaluated_by_1"]
    for values in values_of(tmp_path, 2):
        assert (values == VALUES).all()
