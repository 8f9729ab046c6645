"""Hugging Face folders to Megatron's ``.nemo`` and back: the same numbers under other names, in other layouts.

facts.py says what a model is, mapping.py what its tensors are called on either side, checkpoint.py and
hf_folder.py read and write the two kinds of files, nemo_source.py finds what belongs to a checkpoint, lora_weights.py
merges LoRA; hf_to_nemo.py, nemo_to_hf.py, verify.py and, for adapters, peft_to_nemo.py and peft_folder.py are the
commands. Only restored.py needs NeMo, for verify.py: weights are converted with torch and safetensors alone.
"""
