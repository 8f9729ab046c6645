"""The prompt format: plain or through the chat template, chosen by the user or copied from the training pairs."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nemo_minordpo.core.chat_template import FixedTemplate
from nemo_minordpo.core.gsm8k import chat_turns, plain_prompt
from nemo_minordpo.errors import UserError
from nemo_minordpo.file_names import MANIFEST
from nemo_minordpo.flat import differences
from nemo_minordpo.prompts import Way, ways_of


@dataclass(frozen=True, kw_only=True)
class Asking:
    """The user's prompt options, named as in `prepare`; "auto" means "chat" if the tokenizer has a chat template."""

    template: str = "auto"
    system: str | None = None
    date: str | None = None
    template_options: dict[str, Any] = field(default_factory=dict)

    def as_in(self, folder: Path) -> "Asking":
        """Fill in options that the user did not give from the manifest of a folder of pairs or of a trained model.

        Raises:
            UserError: the manifest has no prompt format, or several.
        """
        ways = ways_of(folder.parent if folder.is_file() else folder)
        if not ways:
            raise UserError(
                f"{folder}: no {MANIFEST} with a prompt format: name a folder that `minordpo prepare` wrote, or a "
                "model exported from a run on such pairs"
            )
        if len(ways) > 1:
            raise UserError(f"{folder}: its prompts have {len(ways)} formats: choose one with the options for prompts")
        (way,) = ways
        if self.template not in ("auto", way["template"]):
            return self  # the other options belong to the other template
        return Asking(
            template=way["template"],
            system=way["system"] if self.system is None else self.system,
            date=self.date or way["date"],
            template_options=way["template_options"] | self.template_options,
        )

    def prompts(self, tokenizer: Any, *, interrupted_date: str | None) -> "Prompts":
        """Apply the options to a model's tokenizer.

        Args:
            tokenizer: the model's.
            interrupted_date: the date in the prompts of an interrupted evaluation that is being resumed; None = none.

        Raises:
            UserError: the tokenizer has no chat template or an unsuitable one, or options contradict one another.
        """
        if self.template not in ("auto", "plain", "chat"):
            raise UserError(f"template is {self.template!r}: choose 'auto', 'plain' or 'chat'")
        has_template = tokenizer.chat_template is not None
        if self.template == "chat" and not has_template:
            raise UserError("template is 'chat', but the model's tokenizer has no chat template: choose 'plain'")
        if self.template != "plain" and has_template:
            template = FixedTemplate(tokenizer, name="the model", date=self.date, options=self.template_options)
            if interrupted_date and template.date and self.date is None:
                return replace(self, date=interrupted_date).prompts(tokenizer, interrupted_date=None)
            return Prompts(template, self)
        for name, given in (
            ("system turn", self.system),
            ("date", self.date),
            ("template option", self.template_options),
        ):
            if given not in (None, {}):
                raise UserError(
                    f"a {name} was given, but plain prompts have none: leave it out, or use a chat template"
                )
        return Prompts(None, self)


class Prompts:
    """Turns questions into the text that the model reads."""

    def __init__(self, template: FixedTemplate | None, asking: Asking) -> None:
        self._template, self._asking = template, asking

    @property
    def way(self) -> Way:
        """The prompt format as written to manifests."""
        if self._template is None:
            return {"template": "plain", "system": None, "date": None, "template_options": {}}
        return vars(self._asking) | {"template": "chat", "date": self._template.date}

    def text(self, question: str) -> str:
        """The whole text before the response.

        Raises:
            UserError: the chat template refuses the turns.
        """
        if self._template is None:
            return plain_prompt(question)
        turns = chat_turns(question, system=self._asking.system)
        return self._template.render(turns, add_generation_prompt=True)

    def not_as_trained(self, model: Path) -> str:
        """A warning if the model is known to have been trained on prompts in another format; else empty."""
        trained = ways_of(model)
        if not trained or self.way in trained:
            return ""
        names = ["template"] if self.way["template"] != trained[0]["template"] else list(self.way)
        found = differences(*({name: way[name] for name in names} for way in (trained[0], self.way)))
        rendered = " (prompts rendered before `prepare` count as plain)" if names == ["template"] else ""
        return (
            f"{model} was trained on prompts in another format: {'; '.join(map(str.strip, found))}{rendered}. "
            f"To use the format of the training: --prompts-of {model}"
        )
