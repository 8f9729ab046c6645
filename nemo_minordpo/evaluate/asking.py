"""How a model is asked: plainly or through its chat template, as the user says or as the pairs were written."""

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
    """What the user says of the prompts; names as in `prepare`, and "auto": "chat" where there is a chat template."""

    template: str = "auto"
    system: str | None = None
    date: str | None = None
    template_options: dict[str, Any] = field(default_factory=dict)

    def as_in(self, folder: Path) -> "Asking":
        """With what the manifest in a folder of pairs, or of a trained model, says where the user says nothing.

        Raises:
            UserError: it says nothing either, or several things.
        """
        ways = ways_of(folder.parent if folder.is_file() else folder)
        if not ways:
            raise UserError(
                f"{folder}: no {MANIFEST} there that says how prompts were written: name a folder that "
                "`minordpo prepare` wrote, or a model that was exported from a run on such pairs"
            )
        if len(ways) > 1:
            raise UserError(f"{folder}: its prompts were written in {len(ways)} ways: say here which one is meant")
        (way,) = ways
        if self.template not in ("auto", way["template"]):
            return self  # what goes with another template has no place in this one
        return Asking(
            template=way["template"],
            system=way["system"] if self.system is None else self.system,
            date=self.date or way["date"],
            template_options=way["template_options"] | self.template_options,
        )

    def prompts(self, tokenizer: Any, *, interrupted_date: str | None) -> "Prompts":
        """What comes of it with a model's tokenizer.

        Args:
            tokenizer: the model's.
            interrupted_date: of the evaluation that is to be finished: what its template showed; None = there is none.

        Raises:
            UserError: the tokenizer has no chat template, or one that does not fit; or options that do not go together.
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
                    f"a {name} was given, but a plain prompt has none: leave it out, or use a chat template"
                )
        return Prompts(None, self)


class Prompts:
    """Questions as the model reads them."""

    def __init__(self, template: FixedTemplate | None, asking: Asking) -> None:
        self._template, self._asking = template, asking

    @property
    def way(self) -> Way:
        """As manifests have it."""
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
        """A line for the user where a model was trained on prompts written otherwise, as far as that is known."""
        trained = ways_of(model)
        if not trained or self.way in trained:
            return ""
        names = ["template"] if self.way["template"] != trained[0]["template"] else list(self.way)
        found = differences(*({name: way[name] for name in names} for way in (trained[0], self.way)))
        rendered = " (prompts that were rendered before `prepare` count as plain)" if names == ["template"] else ""
        return (
            f"{model} was trained on prompts written otherwise: {'; '.join(map(str.strip, found))}{rendered}. "
            f"To ask as in training: --prompts-of {model}"
        )
