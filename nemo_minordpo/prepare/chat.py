"""Prompts as the model reads them: plain text, or turns in the tokenizer's own chat template."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nemo_minordpo.core.boundaries import end_texts, split_end
from nemo_minordpo.core.chat_template import FixedTemplate
from nemo_minordpo.core.gsm8k import paper_prompt, plain_prompt
from nemo_minordpo.core.template_marks import ENDS, RENDERED
from nemo_minordpo.errors import UserError
from nemo_minordpo.hugging_face import load_tokenizer
from nemo_minordpo.prepare.conversation import Message
from nemo_minordpo.prepare.rendering import written_response
from nemo_minordpo.prepare.tracked_row import texts_in
from nemo_minordpo.records import PreferencePair
from nemo_minordpo.sidecars import TOKENIZER_FILES

_THINK = "<think>"
# "<s>" and "</s>" are also HTML, so ordinary text may contain them even if they are tokens.
_SHORTEST_SPECIAL = 5
_BEFORE_DIFFERENCE, _SHOWN = 20, 80  # characters of an example in a note


@dataclass(frozen=True, kw_only=True)
class Prompting:
    """How prompts are written.

    template: "plain": the text as is; "chat": turns in the tokenizer's template.
    tokenizer: Hugging Face folder with a chat template; for "chat" only.
    system: system turn for conversations without one; None leaves it to the template.
    date: the date that the template prints, if it prints one, ISO 8601; None = today.
    template_options: the template's variables besides the conversation, for example enable_thinking.
    """

    template: str = "plain"
    tokenizer: Path | None = None
    system: str | None = None
    date: str | None = None
    template_options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises UserError if the options contradict one another."""
        if self.template not in ("plain", "chat"):
            raise UserError(f"template is {self.template!r}: choose 'plain' or 'chat'")
        if self.template == "chat" and self.tokenizer is None:
            raise UserError("template 'chat' needs a tokenizer folder: its chat template makes the prompts")
        given = [name for name, value in self.settings().items() if name != "template" and value not in (None, {})]
        if self.template == "plain" and given:
            raise UserError(f"template 'plain' has no use for {given[0]}: leave it out, or choose template 'chat'")

    def settings(self) -> dict[str, Any]:
        tokenizer = None if self.tokenizer is None else str(self.tokenizer)
        return vars(self) | {"tokenizer": tokenizer}

    def dated(self, date: str) -> "Prompting":
        """A copy with this date."""
        return replace(self, date=date)

    def input_files(self) -> list[Path]:
        if self.tokenizer is None:
            return []
        return [self.tokenizer / name for name in TOKENIZER_FILES if (self.tokenizer / name).is_file()]

    def open(self) -> "ChatTemplate | None":
        """The tokenizer's template; None for plain text.

        Raises:
            UserError: the tokenizer cannot be loaded, or its chat template is missing or cannot make prompts.
        """
        if self.tokenizer is None:
            return None
        tokenizer, name = load_tokenizer(self.tokenizer), str(self.tokenizer)
        template = FixedTemplate(tokenizer, name=name, date=self.date, options=self.template_options)
        return ChatTemplate(tokenizer, template, name=name, system=self.system)


def question_prompts(prompting: Prompting) -> Callable[[str, str, str], tuple[PreferencePair, str]]:
    """A function (question, chosen, rejected) -> (pair with the paper's prompt, note), for worked answers."""
    chat = prompting.open()
    if chat is None:
        return lambda question, chosen, rejected: (
            PreferencePair(prompt=plain_prompt(question), chosen_response=chosen, rejected_response=rejected),
            "",
        )
    return lambda question, chosen, rejected: chat.pair(
        [{"role": "user", "content": paper_prompt(question)}], chosen=chosen, rejected=rejected
    )


class ChatTemplate:
    """Make pairs from conversations, using only a tokenizer's `apply_chat_template`.

    The prompt ends with the template's generation prompt (for example `<|im_start|>assistant` and a newline): the model
    sees it when asked to answer, and it is never a label. Responses are used as written: many templates trim or drop
    parts of an assistant's turn (`<think>`), which would change what the model learns.
    """

    def __init__(self, tokenizer: Any, template: FixedTemplate, *, name: str, system: str | None):
        """Raises UserError if the template cannot make a prompt from a user's turn."""
        self._template, self._system = template, system
        self._special = [text for text in tokenizer.all_special_tokens if len(text) >= _SHORTEST_SPECIAL]
        turns = "a user turn" + ("" if system is None else " with a system turn before it")
        question, answer = "What is 1 + 1?", "1 + 1 = 2."
        conversation = self._with_system([{"role": "user", "content": question}])
        try:
            prompt = self._template.render(conversation, add_generation_prompt=True)
            self._end = self._with_response(conversation, answer).rpartition(answer)[2]
            self._ends = [*end_texts(tokenizer), self._end.strip()]
            self._checked(conversation, prompt, answer)
        except UserError as error:
            raise UserError(f"{name}: the chat template cannot be used with {turns}: {error}") from error
        if any(message["content"] not in prompt for message in conversation):
            raise UserError(f"{name}: the chat template leaves out {turns}, or parts of it")
        self.advice = ""  # shown to the user unless empty
        if tokenizer.eos_token and tokenizer.eos_token not in self._end:
            self.advice = (
                f"{name}: the template ends an assistant's turn with {self._end!r}, and training ends responses with "
                f"the tokenizer's EOS {tokenizer.eos_token!r}: set eos_token if the model should stop as the template "
                "does"
            )

    @property
    def date(self) -> str | None:
        """The date that the template prints; None if it prints none."""
        return self._template.date

    def with_tools(self, tools: list[dict[str, Any]]) -> "ChatTemplate":
        """A copy for conversations that may call these functions, see `tools`."""
        other = copy.copy(self)
        other._template = self._template.with_tools(tools)
        return other

    def render(self, messages: list[Message]) -> str:
        """Raises UserError if the template rejects the turns."""
        return self._template.render(self._with_system(messages))

    def pair(
        self, messages: list[Message], *, chosen: str | Message, rejected: str | Message
    ) -> tuple[PreferencePair, str]:
        """Make a pair from a conversation that ends with the user's turn.

        Args:
            messages: the conversation.
            chosen: text, used as written; or a turn that is more than text, rendered by the template.
            rejected: likewise.

        Returns:
            The pair, and a note if the template does something unusual, else "". The first line of a note is the same
            for all such pairs; the other lines show this pair's case.

        Raises:
            UserError: the template rejects the conversation or contradicts itself, or a text contains special tokens.
        """
        # A response may include the end-of-turn text that the template prints; training adds one if it is missing.
        given = [split_end(one, self._ends)[0] if isinstance(one, str) else one for one in (chosen, rejected)]
        texts = list(texts_in([*messages, *given]))
        for special in self._special:
            if any(special in text for text in texts):
                raise UserError(f"special token in a text: {special!r} (already rendered by a template?)")
        conversation = self._with_system(messages)
        prompt = self._template.render(conversation, add_generation_prompt=True)
        responses = [self._written(conversation, prompt, one) for one in (chosen, rejected)]
        if len({split_end(text, self._ends)[0] for text in responses}) == 1 and responses[0] != responses[1]:
            raise UserError("chosen and rejected differ only in how they end")
        notes = [_foreign(messages, given)]
        notes += [self._checked(conversation, prompt, one) for one in given if isinstance(one, str)]
        pair = PreferencePair(prompt=prompt, chosen_response=responses[0], rejected_response=responses[1])
        return pair, next(filter(None, notes), "")

    def _written(self, conversation: list[Message], prompt: str, response: str | Message) -> str:
        if isinstance(response, str):
            return response
        return written_response(conversation, response, prompt=prompt, end=self._end, render=self._template.render)

    def _checked(self, conversation: list[Message], prompt: str, response: str) -> str:
        """A note if the template would write the response differently, else "".

        Raises:
            UserError: the rendered conversation with the response does not begin with the prompt, so training and
                generation would see different prompts; or both prompt and response open <think>.
        """
        if response.lstrip().startswith(_THINK) and _THINK in self._generation_prompt(conversation, prompt):
            raise UserError("both prompt and response open <think>: remove it from the responses")
        whole = self._with_response(conversation, response)
        if whole.startswith(prompt):
            written = prompt + response
            # Mistral's templates put a space before a response; the response may include it
            if whole.startswith(written) or self._with_response(conversation, response.lstrip()).startswith(written):
                return ""
            return "the template would rewrite the response\n" + _compared(
                "as written", response, "by the template", whole[len(prompt) :].removesuffix(self._end)
            )
        generation_prompt = self._generation_prompt(conversation, prompt)
        turns = prompt.removesuffix(generation_prompt)
        if not whole.startswith(turns):
            raise UserError("the chat template rewrites the prompt once the response is added")
        return "the template begins an assistant's turn differently from its generation prompt\n" + _compared(
            "generation prompt", generation_prompt, "assistant's turn", whole.removeprefix(turns)
        )

    def _with_response(self, conversation: list[Message], response: str) -> str:
        return self._template.render([*conversation, _assistant(response)])

    def _generation_prompt(self, conversation: list[Message], prompt: str) -> str:
        """What follows the conversation's turns in the prompt."""
        return prompt[_num_shared(self._template.render(conversation), prompt) :]

    def _with_system(self, messages: list[Message]) -> list[Message]:
        if self._system is None or (messages and messages[0]["role"] == "system"):
            return messages
        return [{"role": "system", "content": self._system}, *messages]


def _foreign(messages: list[Message], responses: list[str | Message]) -> str:
    """A note if texts contain marks of another template, which would be learned as ordinary text; else ""."""
    found = RENDERED.match(messages[-1]["content"])
    ends = [split_end(one, ENDS)[1] for one in responses if isinstance(one, str)]
    mark = found[1] if found else next(filter(None, ends), "")
    if not mark:
        return ""
    return f"texts seem to be rendered by another template already\nfound {mark!r}: remove it, or use --template plain"


def _compared(name: str, text: str, other_name: str, other: str) -> str:
    """Two lines: both texts around the first character where they differ."""
    place = _num_shared(text, other)
    start = max(0, place - _BEFORE_DIFFERENCE)
    width = max(len(name), len(other_name)) + 1
    shown = [
        ("... " if start else "") + repr(one[start : start + _SHOWN]) + (" ..." if len(one) > start + _SHOWN else "")
        for one in (text, other)
    ]
    return "\n".join(f"{label + ':':{width}} {one}" for label, one in zip((name, other_name), shown, strict=True))


def _num_shared(text: str, other: str) -> int:
    """Length of the common prefix, in characters."""
    differing = (place for place, (one, another) in enumerate(zip(text, other, strict=False)) if one != another)
    return next(differing, min(len(text), len(other)))


def _assistant(response: str) -> Message:
    return {"role": "assistant", "content": response}
