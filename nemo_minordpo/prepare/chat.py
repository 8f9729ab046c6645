"""Prompts as a model is to read them: plain text, or turns in the tokenizer's own chat template."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_minordpo.core.gsm8k import paper_prompt, plain_prompt
from nemo_minordpo.errors import UserError
from nemo_minordpo.prepare.conversation import Message
from nemo_minordpo.records import PreferencePair
from nemo_minordpo.sidecars import TOKENIZER_FILES

_THINK = "<think>"
# "<s>" and "</s>" are also HTML, and the tokenizers that have them as tokens meet them in ordinary text.
_SHORTEST_SPECIAL = 5


@dataclass(frozen=True, kw_only=True)
class Prompting:
    """How prompts are written.

    template: "plain": the text as it is; "chat": turns of the tokenizer's template.
    tokenizer: Hugging Face folder with a chat template; for "chat", and only then.
    system: the system turn where a conversation has none of its own; None leaves it to the template.
    """

    template: str = "plain"
    tokenizer: Path | None = None
    system: str | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for options that do not go together."""
        if self.template not in ("plain", "chat"):
            raise UserError(f"template is {self.template!r}: choose 'plain' or 'chat'")
        if self.template == "chat" and self.tokenizer is None:
            raise UserError("template 'chat' needs a tokenizer folder: its chat template makes the prompts")
        if self.template == "plain" and (self.tokenizer is not None or self.system is not None):
            given = "tokenizer" if self.tokenizer is not None else "system"
            raise UserError(f"template 'plain' has no use for {given}: leave it out, or choose template 'chat'")

    def settings(self) -> dict[str, Any]:
        tokenizer = None if self.tokenizer is None else str(self.tokenizer)
        return {"template": self.template, "tokenizer": tokenizer, "system": self.system}

    def input_files(self) -> list[Path]:
        if self.tokenizer is None:
            return []
        return [self.tokenizer / name for name in TOKENIZER_FILES if (self.tokenizer / name).is_file()]

    def open(self) -> "ChatTemplate | None":
        """The tokenizer's template; None for plain text.

        Raises:
            ValueError: no tokenizer can be loaded, it has no chat template, or one that cannot make prompts.
        """
        if self.tokenizer is None:
            return None
        return ChatTemplate(load_tokenizer(self.tokenizer), name=str(self.tokenizer), system=self.system)


def question_prompts(prompting: Prompting) -> Callable[[str, str, str], tuple[PreferencePair, str]]:
    """(question, chosen, rejected) -> pair with the paper's prompt, and a note, for questions with worked answers."""
    chat = prompting.open()
    if chat is None:
        return lambda question, chosen, rejected: (
            PreferencePair(prompt=plain_prompt(question), chosen_response=chosen, rejected_response=rejected),
            "",
        )
    return lambda question, chosen, rejected: chat.pair(
        [{"role": "user", "content": paper_prompt(question)}], chosen=chosen, rejected=rejected
    )


def load_tokenizer(folder: Path) -> Any:
    """A tokenizer of a local folder.

    Raises:
        ValueError: there is none in it.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such tokenizer folder")
    # Loading transformers takes seconds, and plain prompts do without.
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # whatever the files' readers have to say
        raise UserError(f"{folder}: no Hugging Face tokenizer can be loaded from it ({error})") from error


class ChatTemplate:
    """Conversations through a tokenizer's `apply_chat_template`, and nothing else.

    The prompt ends with the template's generation prompt (`<|im_start|>assistant` and a line end, say): it is what the
    model is given when it is to answer, and never a label. Responses are taken as they are written: many templates
    trim or drop parts of an assistant's turn (`<think>`), which would change what is learnt.
    """

    def __init__(self, tokenizer: Any, *, name: str, system: str | None):
        """Raises ValueError where the template makes no prompt of a user's turn."""
        from jinja2 import TemplateError

        self._tokenizer, self._system, self._template_error = tokenizer, system, TemplateError
        if tokenizer.chat_template is None:
            raise UserError(f"{name}: the tokenizer has no chat template; choose template 'plain'")
        self._special = [text for text in tokenizer.all_special_tokens if len(text) >= _SHORTEST_SPECIAL]
        turns = "a user turn" + ("" if system is None else " with a system turn before it")
        question, answer = "What is 1 + 1?", "1 + 1 = 2."
        conversation = self._with_system([{"role": "user", "content": question}])
        try:
            prompt = self._render(conversation, add_generation_prompt=True)
            self._checked(conversation, prompt, answer)
        except ValueError as error:
            raise UserError(f"{name}: the chat template cannot be used with {turns}: {error}") from error
        if any(message["content"] not in prompt for message in conversation):
            raise UserError(f"{name}: the chat template leaves out {turns}, or parts of it")
        end = self._render([*conversation, _assistant(answer)]).rpartition(answer)[2]
        self._ends = (tokenizer.eos_token or "", end.strip())
        self.advice = ""  # for the user, when it is not empty
        if tokenizer.eos_token and tokenizer.eos_token not in end:
            self.advice = (
                f"{name}: the template ends an assistant's turn with {end!r}, and training ends responses with the "
                f"tokenizer's EOS {tokenizer.eos_token!r}: set eos_token if the model is to stop as the template does"
            )

    def pair(self, messages: list[Message], *, chosen: str, rejected: str) -> tuple[PreferencePair, str]:
        """The pair of a conversation that ends with the user's turn, and a note where the template is peculiar.

        Raises:
            ValueError: the template refuses the conversation, or contradicts itself; or a text holds special tokens.
        """
        texts = [message["content"] for message in messages] + [self._without_end(text) for text in (chosen, rejected)]
        for special in self._special:
            if any(special in text for text in texts):
                raise UserError(f"special token in a text: {special!r} (rendered by a template already?)")
        conversation = self._with_system(messages)
        prompt = self._render(conversation, add_generation_prompt=True)
        if prompt.rstrip().endswith(_THINK) and any(text.lstrip().startswith(_THINK) for text in (chosen, rejected)):
            raise UserError("both prompt and response open <think>: take it out of the responses")
        notes = [self._checked(conversation, prompt, response) for response in (chosen, rejected)]
        pair = PreferencePair(prompt=prompt, chosen_response=chosen, rejected_response=rejected)
        return pair, max(notes)

    def _checked(self, conversation: list[Message], prompt: str, response: str) -> str:
        """A note where the template would write the response otherwise, else "".

        Raises:
            ValueError: the conversation with its response does not begin with the prompt, so that the model would be
                trained on something else than what it is asked later.
        """
        whole = self._render([*conversation, _assistant(response)])
        if whole.startswith(prompt):
            return "" if whole.startswith(response, len(prompt)) else "the template would rewrite the response"
        if not whole.startswith(self._render(conversation)):
            raise UserError("the chat template rewrites the prompt when the response is there")
        return "the template's generation prompt is not how it begins an assistant's turn"

    def _with_system(self, messages: list[Message]) -> list[Message]:
        if self._system is None or (messages and messages[0]["role"] == "system"):
            return messages
        return [{"role": "system", "content": self._system}, *messages]

    def _render(self, messages: list[Message], *, add_generation_prompt: bool = False) -> str:
        try:
            return self._tokenizer.apply_chat_template(
                messages, add_generation_prompt=add_generation_prompt, tokenize=False
            )
        except self._template_error as error:
            raise UserError(f"the chat template refuses the conversation: {error}") from error
        except (TypeError, AttributeError, LookupError, ArithmeticError) as error:  # in an expression of the template
            raise UserError(f"the chat template fails at the conversation: {error}") from error

    def _without_end(self, response: str) -> str:
        """A response may be written with its end: EOS, behind which training puts no other, or the template's."""
        for end in self._ends:
            response = response.removesuffix(end)
        return response


def _assistant(response: str) -> Message:
    return {"role": "assistant", "content": response}
