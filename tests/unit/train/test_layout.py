"""Layouts that divide a model, and suggestions of the nearest ones."""

import pytest
from omegaconf import OmegaConf

from nemo_minordpo.train.model.layout import layout_problems, possible_layouts

LLAMA_70B = {"num_attention_heads": 64, "num_query_groups": 8, "ffn_hidden_size": 28672, "num_layers": 80}
SMOLLM2 = {"num_attention_heads": 9, "num_query_groups": 3, "ffn_hidden_size": 1536, "num_layers": 30}


def model(sizes, *, tensor, pipeline):
    return OmegaConf.create({**sizes, "tensor_model_parallel_size": tensor, "pipeline_model_parallel_size": pipeline})


@pytest.mark.parametrize(("tensor", "pipeline"), [(8, 4), (4, 8), (8, 8), (1, 1), (8, 2)])
def test_layouts_that_work(tensor, pipeline):
    assert layout_problems(model(LLAMA_70B, tensor=tensor, pipeline=pipeline), num_nodes=8, devices=8) == []


def test_every_problem_and_the_nearest_layouts_are_listed():
    problems = layout_problems(model(LLAMA_70B, tensor=16, pipeline=3), num_nodes=8, devices=8)
    assert problems == [
        "model.tensor_model_parallel_size=16 does not divide the model's num_query_groups=8",
        "model.pipeline_model_parallel_size=3 does not divide the model's num_layers=80",
        "64 ranks (trainer.num_nodes=8 x trainer.devices=8) cannot be divided by "
        "tensor_model_parallel_size x pipeline_model_parallel_size = 48",
        "nearest layouts of 64 ranks that work: "
        "model.tensor_model_parallel_size=8 model.pipeline_model_parallel_size=4 (DP=2); "
        "model.tensor_model_parallel_size=8 model.pipeline_model_parallel_size=2 (DP=4); "
        "model.tensor_model_parallel_size=8 model.pipeline_model_parallel_size=8 (DP=1)",
    ]


def test_suggested_layouts_work():
    for ranks in (1, 2, 6, 12, 30):
        layouts = possible_layouts(model(SMOLLM2, tensor=1, pipeline=1), ranks=ranks, near=(2, 2))
        assert (1, 1) in layouts
        for tensor, pipeline in layouts:
            assert ranks % (tensor * pipeline) == 0
            assert layout_problems(model(SMOLLM2, tensor=tensor, pipeline=pipeline), num_nodes=1, devices=ranks) == []
