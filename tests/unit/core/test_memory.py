"""Memory of a rank against counts by hand and published figures."""

from dataclasses import replace

import pytest
import yaml

from nemo_minordpo.core.flops import ModelSize, StepWork
from nemo_minordpo.core.memory import GIB, Layout, Numerics, fullest_rank, num_parameters
from nemo_minordpo.sweep.config import SHIPPED

LLAMA_2_7B = ModelSize(
    num_layers=32, hidden_size=4096, ffn_hidden_size=11008, num_heads=32, num_query_groups=32, head_size=128,
    vocab_size=32000, gated=True,
)  # fmt: skip
LLAMA_3_70B = ModelSize(
    num_layers=80, hidden_size=8192, ffn_hidden_size=28672, num_heads=64, num_query_groups=8, head_size=128,
    vocab_size=128256, gated=True,
)  # fmt: skip
LLAMA_2_70B = replace(LLAMA_3_70B, vocab_size=32000)
QWEN15_7B = replace(LLAMA_2_7B, vocab_size=151936)
MISTRAL_NEMO = ModelSize(  # 12B; 32 heads of 128, hidden size 5120
    num_layers=40, hidden_size=5120, ffn_hidden_size=14336, num_heads=32, num_query_groups=8, head_size=128,
    vocab_size=131072, gated=True,
)  # fmt: skip
QWEN3_4B = ModelSize(
    num_layers=36, hidden_size=2560, ffn_hidden_size=9728, num_heads=32, num_query_groups=8, head_size=128,
    vocab_size=151936, gated=True,
)  # fmt: skip
QWEN3_30B_A3B = ModelSize(
    num_layers=48, hidden_size=2048, ffn_hidden_size=768, num_heads=32, num_query_groups=4, head_size=128,
    vocab_size=151936, gated=True, num_experts=128, experts_per_token=8,
)  # fmt: skip
GPT_22B = ModelSize(  # table 3 of Korthikanti et al.
    num_layers=48, hidden_size=6144, ffn_hidden_size=4 * 6144, num_heads=64, num_query_groups=64, head_size=96,
    vocab_size=51200, gated=False,
)  # fmt: skip
BF16 = Numerics(weight=2, gradient=4, optimizer=12, activation=2)


def layout(**changes):
    return Layout(
        **{
            "tensor_parallel": 1, "pipeline_parallel": 1, "sequence_parallel": False, "recompute": False,
            "row_length": 4096, "num_rows": 8, "num_targets": 1000, **changes,
        }
    )  # fmt: skip


@pytest.mark.parametrize(
    ("size", "published"),
    [(LLAMA_2_7B, 6_738_415_616), (LLAMA_3_70B, 70_553_706_496), (MISTRAL_NEMO, 12_247_782_400)],
)
def test_parameters_are_those_of_the_model_cards(size, published):
    assert num_parameters(size, stage=0, tensor_parallel=1, pipeline_parallel=1, tied=False) == published


def test_parameters_of_qwen3_without_query_and_key_norms():
    found = num_parameters(QWEN3_4B, stage=0, tensor_parallel=1, pipeline_parallel=1, tied=True)
    assert found == 4_022_468_096 - 36 * 2 * 128


def test_parameters_of_a_mixture_of_experts():
    """Qwen3-30B-A3B: 30,532,122,624 weights, query and key norms included; 3.3 billion of them for one token."""
    whole = {"stage": 0, "tensor_parallel": 1, "pipeline_parallel": 1, "tied": False}
    size = QWEN3_30B_A3B
    assert num_parameters(size, **whole) == 30_532_122_624 - 48 * 2 * 128
    active = 48 * size.active_weights_of_layer + 2 * size.vocab_size * size.hidden_size
    assert active / 1e9 == pytest.approx(3.3, abs=0.05)
    experts = 48 * 128 * 3 * 2048 * 768
    spread = num_parameters(size, **whole, expert_parallel=8)
    assert spread == num_parameters(size, **whole) - experts * 7 // 8
    assert num_parameters(LLAMA_3_70B, **whole, expert_parallel=1) == 70_553_706_496


def test_interleaved_stages_hold_more_rows_in_flight():
    """Korthikanti et al. 2022, section 4.2.3: 1 + (p - 1) / (p m) times the activations of the first stage."""
    many = {"pipeline_parallel": 4, "num_rows": 16}
    plain, interleaved = (
        fullest_rank(LLAMA_3_70B, layout(**many, interleaved=stages), BF16, tied=False, cuda=True).activations
        for stages in (1, 2)
    )
    assert interleaved == pytest.approx(plain * (1 + 3 / 8))


def test_a_mixture_saves_the_activations_of_each_tokens_experts():
    one = replace(QWEN3_30B_A3B, experts_per_token=1)
    eight, single = (
        fullest_rank(size, layout(), BF16, tied=False, cuda=True).activations for size in (QWEN3_30B_A3B, one)
    )
    assert eight - single == 48 * 7 * 3 * 768 * layout().row_length * 2


def test_the_papers_experiment_fits_its_devices():
    """Qwen1.5-7B-Chat as in conf/experiment/paper.yaml, with rows full of response tokens, in 80 GB."""
    train = yaml.safe_load((SHIPPED / "paper.yaml").read_text())["train"]
    rows = train["model"]["data"]["packed_sequence_size"]
    memory = fullest_rank(
        QWEN15_7B,
        layout(
            tensor_parallel=train["model"]["tensor_model_parallel_size"], row_length=rows, num_targets=rows, num_rows=4
        ),
        BF16, tied=False, cuda=True,
    )  # fmt: skip
    assert num_parameters(QWEN15_7B, stage=0, tensor_parallel=1, pipeline_parallel=1, tied=False) == 7_720_931_328
    assert 50 < memory.total / GIB < 70


@pytest.mark.parametrize(("tensor", "pipeline"), [(2, 1), (8, 1), (1, 4), (8, 4), (8, 16)])
def test_all_ranks_together_hold_the_model_and_replicas_of_its_norms(tensor, pipeline):
    whole = num_parameters(LLAMA_3_70B, stage=0, tensor_parallel=1, pipeline_parallel=1, tied=False)
    norms = (2 * 80 + 1) * 8192
    stages = sum(
        num_parameters(LLAMA_3_70B, stage=stage, tensor_parallel=tensor, pipeline_parallel=pipeline, tied=False)
        for stage in range(pipeline)
    )
    assert stages * tensor == whole + (tensor - 1) * norms


def test_tied_weights_are_on_both_ends_of_a_pipeline():
    one = num_parameters(LLAMA_2_7B, stage=0, tensor_parallel=1, pipeline_parallel=1, tied=True)
    ends = sum(
        num_parameters(LLAMA_2_7B, stage=stage, tensor_parallel=1, pipeline_parallel=2, tied=True) for stage in (0, 1)
    )
    assert ends - one == 32000 * 4096


def test_18_bytes_a_weight_with_adam_in_mixed_precision():
    memory = fullest_rank(LLAMA_2_7B, layout(), BF16, tied=False, cuda=True)
    states = memory.weights + memory.gradients + memory.optimizer
    assert states == 18 * 6_738_415_616
    assert memory.total > states


@pytest.mark.parametrize("tensor", [1, 2, 8])
@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_activations_against_korthikanti_et_al(tensor, sequence_parallel):
    """Bytes of a layer without its scores: s b h (10 + 24 / t), and s b h 34 / t under sequence parallelism.

    Theirs has dropout masks (2 s b h before the residual sums, 1 byte per number, twice) but no rotated copies of
    queries and keys, for which ours has 2 h / t more numbers.
    """
    memory = fullest_rank(
        GPT_22B, layout(tensor_parallel=tensor, sequence_parallel=sequence_parallel, num_rows=1), BF16,
        tied=False, cuda=True,
    )  # fmt: skip
    tokens = 4096 * 6144
    whole = (10 - 2) / (tensor if sequence_parallel else 1)
    theirs = 48 * tokens * (whole + 24 / tensor)
    rotated = 48 * tokens * 2 * 2 / tensor
    assert memory.activations == pytest.approx(theirs + rotated, rel=0.01)


def test_recomputation_saves_one_hidden_state_per_place_and_layer():
    kept = fullest_rank(LLAMA_2_7B, layout(recompute=True, num_rows=1), BF16, tied=False, cuda=True).activations
    whole = fullest_rank(LLAMA_2_7B, layout(num_rows=1), BF16, tied=False, cuda=True).activations
    assert kept == pytest.approx(32 * 4096 * 4096 * 2 + whole / 32)


def test_the_first_stage_holds_as_many_rows_as_there_are_stages():
    def stage(rows, pipeline):
        return fullest_rank(
            LLAMA_3_70B, layout(num_rows=rows, pipeline_parallel=pipeline), BF16, tied=False, cuda=True
        ).activations

    assert stage(8, 4) == pytest.approx(stage(1, 1))  # a quarter of the layers, four rows
    assert stage(2, 4) == pytest.approx(stage(1, 1) / 2)


def test_70b_on_64_h100_fits_with_a_distributed_optimizer_only():
    shape = layout(tensor_parallel=8, pipeline_parallel=4, sequence_parallel=True, row_length=4096)
    sharded = Numerics(weight=2, gradient=4, optimizer=12 / 2, activation=2)
    assert fullest_rank(LLAMA_3_70B, shape, sharded, tied=False, cuda=True).total < 80 * GIB
    one_node = layout(tensor_parallel=8)
    assert fullest_rank(LLAMA_3_70B, one_node, BF16, tied=False, cuda=True).total > 80 * GIB


# NeMo 24.07's performance summary: pretraining on DGX-H100 (80 GB), 4,096 tokens, micro-batch 1, distributed optimizer.
PUBLISHED = [  # size, GPUs, (TP, PP), sequences per step, tokens per second and GPU, model TFLOP/s per GPU
    (LLAMA_2_7B, 8, (1, 1), 128, 16634, 767),
    (LLAMA_2_70B, 64, (4, 4), 128, 1717, 763),
]


@pytest.mark.parametrize(("size", "gpus", "layout_of_model", "batch", "tokens", "tflops"), PUBLISHED)
def test_what_nvidia_ran_on_80_gb_is_said_to_fit(size, gpus, layout_of_model, batch, tokens, tflops):
    tensor, pipeline = layout_of_model
    data_parallel = gpus // (tensor * pipeline)
    memory = fullest_rank(
        size,
        layout(
            tensor_parallel=tensor, pipeline_parallel=pipeline, sequence_parallel=tensor > 1,
            num_rows=batch // data_parallel, num_targets=4096,
        ),
        Numerics(weight=2, gradient=4, optimizer=12 / data_parallel, activation=2), tied=False, cuda=True,
    )  # fmt: skip
    assert 55e9 < memory.total < 80e9


@pytest.mark.parametrize(("size", "gpus", "layout_of_model", "batch", "tokens", "tflops"), PUBLISHED)
def test_operations_are_those_that_nvidia_counts(size, gpus, layout_of_model, batch, tokens, tflops):
    """Their attention counts every pair of places, seen or not; ours counts half."""
    length = 4096
    work = StepWork(
        pairs=1, unique_tokens=length, equivalent_tokens=length, attended=length**2, targets=length, places=length
    )
    assert size.training_flops(work) / length == pytest.approx(tflops * 1e12 / tokens, rel=0.002)
