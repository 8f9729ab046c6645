"""Marks by which the templates of well-known models are recognised in texts that they have rendered."""

import re

from nemo_minordpo.core.boundaries import split_end

# family of templates -> how it opens a turn, or a whole prompt
_OPENINGS = {
    "ChatML": r"<\|im_start\|>",
    "Llama 3": r"<\|(?:begin_of_text|start_header_id)\|>",
    "Zephyr/Phi": r"<\|(?:system|user)\|>",
    "Gemma": r"<start_of_turn>",
    "Llama 2/Mistral": r"\[INST\]",
    "Alpaca": r"### (?:Instruction|System|User|Human):|Below is an instruction that describes a task",
}
# end of a response -> the families that write it; () = it says nothing about the family
_ENDS = {
    "</s>": ("Llama 2/Mistral", "Zephyr/Phi"),
    "<|im_end|>": ("ChatML",),
    "<|eot_id|>": ("Llama 3",),
    "<|endoftext|>": (),
    "<|end|>": ("Zephyr/Phi",),
    "<end_of_turn>": ("Gemma",),
    "<eos>": (),
}
ENDS = tuple(_ENDS)
# a rendered prompt, possibly with BOS before it; "<s>" alone is also HTML and names no family
RENDERED = re.compile(rf"\s*(<s>|<bos>|{'|'.join(_OPENINGS.values())})")
_OPENING = re.compile("|".join(f"({pattern})" for pattern in _OPENINGS.values()))
_OPENING_RESPONSE = re.compile(rf"\s*({'|'.join(_OPENINGS.values())})")
# a turn that opens directly after the opening of another one, before any text: rendered again
_NESTED = re.compile(
    r"<\|im_start\|>\w*\s*<\|im_start\|>|<\|start_header_id\|>\w*<\|end_header_id\|>\s*<\|(?:begin_of_text|start_header_id)\|>"
    r"|<\|user\|>\s*<\|(?:system|user)\|>|<start_of_turn>\w*\s*(?:<bos>)?<start_of_turn>|\[INST\]\s*(?:<s>)?\[INST\]"
    r"|### (Instruction|User|Human):\s*(?:Below is an instruction|### \1:)"
)


def families(text: str) -> list[str]:
    """The families whose openings the text contains, in the order of their first one."""
    names = list(_OPENINGS)
    return list(dict.fromkeys(names[found.lastindex - 1] for found in _OPENING.finditer(text) if found.lastindex))


def templated_twice(prompt: str, *responses: str) -> str:
    """Why a pair seems to be rendered by two templates, or twice by one; "" if it does not."""
    of_prompt = families(prompt)
    if len(of_prompt) > 1:
        return f"the prompt has marks of {' and '.join(of_prompt)}"
    if nested := _NESTED.search(prompt):
        return f"a turn of the prompt opens inside another: {nested[0]!r}"
    for response in responses:
        if opening := _OPENING_RESPONSE.match(response):
            return f"a response begins with {opening[1]!r}"
        end = split_end(response, ENDS)[1]
        if of_prompt and _ENDS.get(end) and of_prompt[0] not in _ENDS[end]:
            return f"a response ends with {end!r}, the prompt is of {of_prompt[0]}"
    return ""
