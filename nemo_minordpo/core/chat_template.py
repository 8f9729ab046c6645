"""A tokenizer's chat template with its date and options fixed, so that only the conversation varies."""

import copy
import inspect
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from jinja2 import Environment, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.meta import find_undeclared_variables
from jinja2.sandbox import ImmutableSandboxedEnvironment

from nemo_minordpo.errors import UserError

_CLOCK = "strftime_now"  # the only clock that transformers offers to templates
_ARGUMENTS = {"messages", "tools", "documents", "add_generation_prompt", "raise_exception", _CLOCK}
_WORDS = {"true": True, "false": False, "none": None, "null": None}  # as Python, YAML and JSON write them


class FixedTemplate:
    """Render conversations with a tokenizer's `apply_chat_template`: the same text on any day.

    date: the date that the template prints, ISO 8601; None if the template has no clock.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        name: str,
        date: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """
        Args:
            tokenizer: a Hugging Face tokenizer.
            name: the tokenizer's name in error messages.
            date: day or time, ISO 8601; None = today.
            options: the template's variables besides the conversation, such as enable_thinking.

        Raises:
            UserError: the template is missing or unreadable, lacks an option, or has no clock for the date.
        """
        if tokenizer.chat_template is None:
            raise UserError(f"{name}: the tokenizer has no chat template; choose template 'plain'")
        self._tokenizer = tokenizer
        try:
            names = _names_read(tokenizer.chat_template)
        except TemplateError as error:
            raise UserError(f"{name}: the chat template cannot be used: {error}") from error
        self._more = dict(options or {})
        self.date: str | None = None
        _check_options(self._more, names - _own_arguments(tokenizer), name=name)
        if _CLOCK in names:
            moment = _moment(date or datetime.now().date().isoformat())
            self.date = moment.isoformat().removesuffix("T00:00:00")
            self._more[_CLOCK] = moment.strftime
        elif date is not None:
            raise UserError(f"{name}: a date was given, but the chat template does not use one: leave the date out")

    def with_tools(self, tools: Sequence[Mapping[str, Any]]) -> "FixedTemplate":
        """A copy for conversations that may call these functions."""
        other = copy.copy(self)
        other._more = {**self._more, "tools": tools}
        return other

    def render(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = False) -> str:
        """The text of a conversation.

        Args:
            messages: with `role` and `content`.
            add_generation_prompt: end with the opening of the assistant's turn.

        Raises:
            UserError: the template rejects the conversation or fails on it.
        """
        try:
            return self._tokenizer.apply_chat_template(
                messages, add_generation_prompt=add_generation_prompt, tokenize=False, **self._more
            )
        except TemplateError as error:
            raise UserError(f"the chat template rejects the conversation: {error}") from error
        except (TypeError, AttributeError, LookupError, ArithmeticError, ValueError) as error:
            # raised by an expression in the template
            raise UserError(f"the chat template fails on the conversation: {error}") from error


def date_line(date: str) -> str:
    """The message shown when prompts contain a date."""
    return f"the chat template prints the date: all prompts say {date} (change it with --date)"


def parse_options(written: Iterable[str]) -> dict[str, Any]:
    """["enable_thinking=false"] -> {"enable_thinking": False}; values that are not JSON stay strings.

    Raises:
        UserError: an option is not NAME=VALUE, or a name occurs twice.
    """
    options: dict[str, Any] = {}
    for text in written:
        name, equals, value = text.partition("=")
        if not (equals and name.isidentifier()):
            raise UserError(f"template option {text!r}: expected NAME=VALUE, such as enable_thinking=false")
        if name in options:
            raise UserError(f"template option {name!r} is given twice")
        options[name] = _value(value)
    return options


def _value(text: str) -> Any:
    if text.lower() in _WORDS:  # the string "False" would count as true
        return _WORDS[text.lower()]
    try:
        value = json.loads(text)
        json.dumps(value, allow_nan=False)
    except ValueError:
        return text
    return value


def _moment(date: str) -> datetime:
    try:
        return datetime.fromisoformat(date)
    except ValueError as error:
        raise UserError(f"date {date!r}: expected an ISO 8601 date such as 2026-11-27") from error


class _Generation(Extension):
    """The {% generation %} tag of transformers, which marks the assistant's text and prints nothing."""

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self.tags = {"generation"}

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)


def _names_read(template: str | Mapping[str, str]) -> set[str]:
    """Variables that the template, or any of several named ones (`default`, `tool_use`), takes from its caller."""
    environment = ImmutableSandboxedEnvironment(extensions=[_Generation, loopcontrols])
    names = set()
    for source in [template] if isinstance(template, str) else template.values():
        tree = environment.parse(source)
        first: dict[str, str] = {}
        for name in _in_order(tree):
            first.setdefault(name.name, name.ctx)
        # jinja also reports variables that a loop or branch sets before they are read
        names |= {name for name in find_undeclared_variables(tree) if first[name] == "load"}
    return names


def _in_order(node: nodes.Node) -> Iterator[nodes.Name]:
    """The names in a template in evaluation order: the value of an assignment before its target."""
    if isinstance(node, nodes.Name):
        yield node
    for child in (node.node, node.target) if isinstance(node, nodes.Assign) else node.iter_child_nodes():
        yield from _in_order(child)


def _own_arguments(tokenizer: Any) -> set[str]:
    return _ARGUMENTS | set(inspect.signature(tokenizer.apply_chat_template).parameters)


def _check_options(options: Mapping[str, Any], known: set[str], *, name: str) -> None:
    unknown = sorted(set(options) - known)
    if unknown:
        raise UserError(
            f"{name}: the chat template has no option {unknown[0]!r}; it reads: {', '.join(sorted(known)) or 'none'}"
        )
