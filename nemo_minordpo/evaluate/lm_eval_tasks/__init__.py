"""Tasks for lm-evaluation-harness: `lm_eval --include_path nemo_minordpo/evaluate/lm_eval_tasks --tasks ...`."""
