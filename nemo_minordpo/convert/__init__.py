"""Convert Hugging Face folders to Megatron's ``.nemo`` and back: the same numbers under other names, in other layouts.

facts.py describes a model and mapping.py the names of its tensors on either side. checkpoint.py and hf_folder.py read
and write the two file formats, nemo_source.py finds the files that belong to a checkpoint, lora_weights.py merges LoRA.
The commands are hf_to_nemo.py, nemo_to_hf.py and verify.py, plus peft_to_nemo.py and peft_folder.py for adapters. Only
restored.py, used by verify.py, needs NeMo: conversion needs just torch and safetensors.
"""
