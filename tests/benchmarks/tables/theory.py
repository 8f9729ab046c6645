"""The step times that tests/benchmarks/step_time.py expects on H100 and H200."""

from typing import Any

from tests.benchmarks.tables.markdown import table

_PARTS = {
    "products": "matrix products of linear layers",
    "attention": "FlexAttention",
    "head": "head",
    "elementwise": "element-wise operations",
    "accumulation": "adding gradients into float32",
    "optimizer": "optimizer",
    "tensor_parallel": "tensor-parallel communication",
    "pipeline": "pipeline: bubbles and transfers",
    "data_parallel": "data-parallel communication",
    "recomputation": "recomputation",
    "launch": "waiting for kernel launches",
}


def steps(values: dict[str, Any]) -> str:
    return "\n".join(
        f"### {name}\n\n{_layout(values['layouts'][name], states)}\n\n{_step(states)}"
        for name, states in values["steps"].items()
    )


def _step(states: dict[str, dict[str, dict[str, float]]]) -> str:
    single, fused = states["single"], states["fused"]
    rows = [
        (text, *[f"{column[part]:.1f}" for column in single.values()])
        for part, text in _PARTS.items()
        if any(column[part] for column in single.values())
    ]
    for text, columns, key, form in (
        ("**total**", single, "total", ".0f"),
        ("CPU time of the launches, hidden", single, "cpu", ".0f"),
        ("model FLOP utilisation", single, "utilisation", ".1%"),
        ("pairs/s per GPU", single, "pairs_per_second", ".1f"),
        ("**total, fused**", fused, "total", ".0f"),
        ("model FLOP utilisation, fused", fused, "utilisation", ".1%"),
        ("pairs/s per GPU, fused", fused, "pairs_per_second", ".1f"),
    ):
        rows.append((text, *[format(column[key], form) for column in columns.values()]))
    return table(" | ".join(["ms per step", *[f"{name}:" for name in single]]), rows)


def _layout(model: dict[str, int], states: dict[str, dict[str, dict[str, float]]]) -> str:
    column = states["single"]["H100 bf16"]
    return (
        f"TP={model['tensor_parallel']} x PP={model['pipeline_parallel']} x DP={model['data_parallel']}; "
        f"{model['pairs']} pairs per step, {model['unique_tokens']:,} tokens, of which {model['targets']:,} are "
        f"targets;\n`packed_sequence_size` {model['row_capacity']}: {column['rows']:.0f} rows of "
        f"{column['row_length']:,} tokens per rank; {column['memory_gib']:.0f} GiB on the fullest rank."
    )


def rows(values: dict[str, Any]) -> str:
    lines = []
    for capacity, columns in values["rows"].items():
        bf16, fp8 = columns.values()
        lines.append(
            (
                capacity,
                f"{fp8['rows']:.0f} x {fp8['row_length']:.0f}",
                *[f"{column['total']:.0f} ({column['cpu']:.0f})" for column in (bf16, fp8)],
                f"{bf16['total'] / fp8['total']:.2f}",
                f"{bf16['utilisation']:.0%}",
                f"{bf16['memory_gib']:.0f}",
            )
        )
    columns = "`model.data.packed_sequence_size` | rows: | bf16, ms (CPU): | FP8, ms (CPU): | bf16 / FP8: "
    return table(f"{columns}| utilisation, bf16: | memory, GiB:", lines)


def fusions(values: dict[str, Any]) -> str:
    return _by_model(
        values["changes"], "ms saved per step, bf16 (FP8)", lambda saved: f"{saved[0]:.1f} ({saved[1]:.1f})"
    )


def heads(values: dict[str, Any]) -> str:
    return _by_model(values["heads"], "ms per step", lambda ms: f"{ms:.1f}")


def blocks(values: dict[str, Any]) -> str:
    named = {f"blocks of {block}": by_model for block, by_model in values["blocks"].items()}
    return _by_model(
        named,
        "positions computed / attended to (ms per step)",
        lambda step: f"{step['visited_over_attended']:.2f} ({step['attention']:.1f})",
    )


def published(values: dict[str, Any]) -> str:
    return table(
        "pre-training step | published, s: | expected, s: | expected / published:",
        [
            (name, *[f"{known[key]:.2f}" for key in ("seconds", "expected", "ratio")])
            for name, known in values["published"].items()
        ],
    )


def _by_model(rows: dict[str, dict[str, Any]], first: str, cell: Any) -> str:
    models = next(iter(rows.values()))
    return table(
        " | ".join([first, *[f"{model}:" for model in models]]),
        [(name, *[cell(value) for value in by_model.values()]) for name, by_model in rows.items()],
    )
