"""What every engine that answers questions takes and gives."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from nemo_minordpo.core.boundaries import beginning_of, missing_beginning
from nemo_minordpo.evaluate.sampling import Sampling


@dataclass(frozen=True, kw_only=True)
class Request:
    """One answer that is wanted.

    index: position of the question in its file, from 0.
    sample: number of the answer to this question, from 0.
    prompt: token ids.
    """

    index: int
    sample: int
    prompt: list[int]


@dataclass(frozen=True, kw_only=True)
class Generation:
    """A model's response to one prompt, without the token that ended it."""

    token_ids: list[int]
    text: str
    finished: bool  # True: the model ended it; False: cut at the token limit


@dataclass(frozen=True, kw_only=True)
class Limits:
    """batch_size: answers written at a time; None = the engine decides. max_new_tokens: longer answers are cut."""

    batch_size: int | None
    max_new_tokens: int


@dataclass(frozen=True, kw_only=True)
class Text:
    """A model's tokenizer, and the tokens that end its answers."""

    tokenizer: Any
    stop_ids: list[int]

    def encode(self, prompt: str) -> list[int]:
        """Token ids of a prompt, the same as in training.

        Starts with one beginning-of-text token if the tokenizer adds it by default, even if the chat template wrote
        it too. No other special token is added.
        """
        ids = self.tokenizer.encode(prompt, add_special_tokens=False)
        return missing_beginning(ids, beginning_of(self.tokenizer)) + ids

    def generation(self, row: Sequence[int]) -> Generation:
        """A response from its token ids; those from the first end-of-text token on are left out."""
        length = next((place for place, token in enumerate(row) if token in self.stop_ids), None)
        token_ids = list(row[:length])
        text = self.tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return Generation(token_ids=token_ids, text=text, finished=length is not None)


class Engine(Protocol):
    """A loaded model that answers prompts.

    name: "transformers" or "vllm".
    text: its tokenizer.
    dtype: of its weights, for example "float32".
    device: for example "cpu".
    context: most tokens of prompt and answer together; None = unknown.
    num_embeddings: token ids are below this.
    """

    name: str
    text: Text
    dtype: str
    device: str
    context: int | None
    num_embeddings: int

    def answers(
        self, requests: Sequence[Request], *, limits: Limits, sampling: Sampling, on_tokens: Callable[[int], None]
    ) -> Iterator[tuple[Request, Generation]]:
        """Answer every request; answers come as they are finished, in any order.

        Apart from rounding of the logits, an answer does not depend on the others.

        Args:
            requests: sorted by the length of their prompts; those with one prompt adjacent.
            limits: on the answers.
            sampling: how tokens are chosen.
            on_tokens: called with the number of tokens written since the last call, for progress.

        Raises:
            UserError: logits are not finite.
        """
        ...
