"""Verification: one text through Hugging Face and through NeMo, in float32; the logits must be the same.

Logits and not losses are compared, tightly and in float32: a wrong rotary base can lower the loss of a text, and a
wrong epsilon leaves every argmax as it was.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nemo_minordpo import host
from nemo_minordpo.convert import model_config
from nemo_minordpo.convert.facts import facts_from_config, read_config
from nemo_minordpo.convert.nemo_source import WEIGHTS_FOLDER, resolve_run
from nemo_minordpo.convert.staging import progress_bar

TEXTS = (
    "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May.",
    "A baker fills 7 trays with 12 rolls each and sells 59 of them. 7 * 12 = 84, and 84 - 59 = 25 rolls are left.",
    "Tom reads 15 pages a day. In 2 weeks he reads 15 * 14 = 210 pages. The answer is: 210",
    "def total(prices):\n    return sum(prices) * 1.19  # with tax, in euros",
)

_PLAIN_FLOAT32 = {
    "precision": "32-true",
    "megatron_amp_O2": False,
    "fp8": False,
    "tensor_model_parallel_size": 1,
    "pipeline_model_parallel_size": 1,
    "virtual_pipeline_model_parallel_size": None,
    "context_parallel_size": 1,
    "sequence_parallel": False,
    "masked_softmax_fusion": False,
    "bias_activation_fusion": False,
    "bias_dropout_add_fusion": False,
    "gradient_accumulation_fusion": False,
    "apply_rope_fusion": False,
    "persist_layer_norm": False,
    "window_size": None,  # texts are cut where it begins
}


@dataclass(frozen=True, kw_only=True)
class Verification:
    """How far two models' logits are apart, over every token of every text."""

    max_difference: float
    mean_difference: float
    argmax_agreement: float  # fraction of tokens
    num_tokens: int
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.max_difference <= self.tolerance

    def __str__(self) -> str:
        return (
            f"logits differ by at most {self.max_difference:.2e} (mean {self.mean_difference:.2e}, "
            f"tolerance {self.tolerance:.0e}), argmax equal for {self.argmax_agreement:.2%} of {self.num_tokens} tokens"
        )


def verify(hf: Path, nemo: Path, *, texts: list[str] | None = None, tolerance: float = 1e-4) -> Verification:
    """Compare a Hugging Face folder with a `.nemo` that NeMo's MegatronGPTModel restores in this process.

    Transformer Engine runs where it is installed, Megatron's local layers elsewhere.

    Args:
        hf: Hugging Face folder, tokenizer included.
        nemo: a `.nemo` (file or unpacked folder), or a run's folder that holds one.
        texts: what to compare on; None = a few sentences of this module's own.
        tolerance: largest absolute difference of a logit.

    Returns:
        The figures, which are within the tolerance.

    Raises:
        ValueError: they are not (NaN included), or one side cannot be loaded.
    """
    nemo = resolve_run(nemo)
    if not nemo.is_file() and not (nemo / WEIGHTS_FOLDER).is_dir():
        raise ValueError(f"{nemo}: a .nemo or its unpacked folder was expected")
    facts = facts_from_config(read_config(hf), where=str(hf / "config.json"))
    # On GPUs, float32 means float32 on either side.
    os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")
    tokens = _tokenize(hf, texts or list(TEXTS), limit=facts.whole_context)
    wanted = _hf_logits(hf, tokens)
    found = [logits[:, : facts.vocab_size] for logits in _nemo_logits(nemo, hf, tokens)]
    result = compare_logits(found, wanted, tolerance=tolerance)
    if not result.passed:
        raise ValueError(f"{nemo} is not the model of {hf}: {result}")
    return result


def compare_logits(found: list[Tensor], wanted: list[Tensor], *, tolerance: float) -> Verification:
    """Figures over all tokens; `found` and `wanted` hold [tokens, vocabulary] of each text."""
    a, b = torch.cat(found).float(), torch.cat(wanted).float()
    difference = (a - b).abs()
    return Verification(
        max_difference=difference.max().item(),
        mean_difference=difference.mean().item(),
        argmax_agreement=(a.argmax(-1) == b.argmax(-1)).float().mean().item(),
        num_tokens=len(a),
        tolerance=tolerance,
    )


def _tokenize(hf: Path, texts: list[str], *, limit: int) -> list[Tensor]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(hf, local_files_only=True)
    tokens = [torch.tensor(tokenizer(text)["input_ids"][:limit]) for text in texts]
    if any(len(ids) == 0 for ids in tokens):
        raise ValueError("a text without a token cannot be compared")
    return tokens


@torch.no_grad()
def _hf_logits(hf: Path, tokens: list[Tensor]) -> list[Tensor]:
    from transformers import AutoModelForCausalLM

    # The kernel that host/attention.py uses: on a CPU the two then agree to the last bit, where the eager one is off
    # by up to 1e-4 for logits of some 30.
    model: Any = AutoModelForCausalLM.from_pretrained(
        hf, torch_dtype=torch.float32, attn_implementation="sdpa", local_files_only=True
    ).eval()
    with progress_bar() as progress:
        return [model(ids[None]).logits[0] for ids in progress.track(tokens, description="Hugging Face")]


@torch.no_grad()
def _nemo_logits(nemo: Path, hf: Path, tokens: list[Tensor]) -> list[Tensor]:
    host.prepare()
    model = _restore(nemo, hf)
    with progress_bar() as progress:
        device = next(model.parameters()).device
        logits = []
        for ids in progress.track(tokens, description="NeMo"):
            row = ids[None].to(device)
            positions = torch.arange(len(ids), device=device)[None]
            logits.append(model.model(input_ids=row, position_ids=positions, attention_mask=None)[0].cpu())
        return logits


def _restore(nemo: Path, hf: Path) -> Any:
    """The model of a `.nemo` in one process, in float32, whatever layout it was trained at."""
    from lightning.pytorch import Trainer
    from nemo.collections.nlp.models.language_modeling.megatron_gpt_model import MegatronGPTModel
    from nemo.collections.nlp.parts.nlp_overrides import NLPDDPStrategy
    from nemo.utils import logging
    from omegaconf import OmegaConf, open_dict

    logging.setLevel(logging.ERROR)  # NeMo warns of some sixty keys that no model config has
    trainer = Trainer(
        accelerator="gpu" if host.has_cuda() else "cpu",
        devices=1,
        precision="32-true",
        strategy=NLPDDPStrategy(no_ddp_communication_hook=True, find_unused_parameters=False),
        logger=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
    )
    config: Any = MegatronGPTModel.restore_from(str(nemo), trainer=trainer, return_config=True)
    facts = facts_from_config(read_config(hf), where=str(hf / "config.json"))
    content: Any = OmegaConf.to_container(config, resolve=True)
    found = model_config.differences(facts, content)
    if found:
        raise ValueError(f"{nemo} is not the model of {hf}: its model_config.yaml has {'; '.join(found)}")
    with open_dict(config):
        config.update(_PLAIN_FLOAT32)
        config.transformer_engine = host.has_transformer_engine()
        config.use_cpu_initialization = not host.has_cuda()
        config.tokenizer.type = str(hf)
    model: Any = MegatronGPTModel.restore_from(str(nemo), trainer=trainer, override_config_path=config)
    return model.eval()
