"""`minordpo prepare answers`: pairs of a right and a wrong answer that a model wrote itself."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nemo_minordpo.core.gsm8k import ANSWER_RULES
from nemo_minordpo.errors import UserError
from nemo_minordpo.files import whole_file
from nemo_minordpo.flat import differences
from nemo_minordpo.prepare.answer_groups import (
    ALL_RIGHT,
    ALL_WRONG,
    CHOSEN,
    MATCHINGS,
    PROMPT,
    QUESTION,
    REJECTED,
    RULES,
    Group,
    Matching,
    Rule,
    group_answers,
    matched,
)
from nemo_minordpo.prepare.build import BuildOptions, build
from nemo_minordpo.prepare.chat import question_prompts
from nemo_minordpo.prepare.recipe import Made, MakePair, Recipe
from nemo_minordpo.prepare.rows import LocalFile, Row
from nemo_minordpo.prepare.sources import Source, find_sources
from nemo_minordpo.prepare.tracked_row import TrackedRow
from nemo_minordpo.prompts import ways_of
from nemo_minordpo.records import Manifest, PreferencePair
from nemo_minordpo.terminal import say

_MATCHED = "matched.jsonl"  # in the scratch folder
_REJECTED_AT = "rejected_source"
_FORMAT = ("template", "system", "template_options")


def prepare_answers(
    sources: list[str],
    output: Path,
    *,
    rule: Rule = "strict",
    matching: Matching = "closest",
    pairs_per_question: int = 1,
    subset: str | None = None,
    split: str = "train",
    options: BuildOptions | None = None,
    **settings: Any,
) -> Manifest:
    """Write pairs of right and wrong answers to the same questions to the folder `output`, see `build`.

    A question gives no pair if all its answers are right, or all are wrong: such questions are listed in
    `rejected_rows.jsonl`, but do not count towards `max_rejected`. The pairs depend on all answers, not on their
    number per file.

    Args:
        sources: folders of `minordpo evaluate --samples`, or files with one answer per row, see `group_answers`. A
            column `question` is put into the paper's prompt; a column `prompt` is the prompt itself.
        output: folder, created if missing.
        rule: which number of an answer counts: "strict", the one after "the answer is", or "flexible".
        matching: which answers become a pair, see `matched`.
        pairs_per_question: at most this many; no answer is in two.
        subset, split: of data sets on the hub.
        options: options of the build; `limit` counts pairs and questions without a pair.
        settings: fields of the recipe, see `Recipe`.

    Raises:
        UserError: an option is wrong; the answers of `evaluate` were written to prompts of another format; or `build`
            refuses the rows.
    """
    for name, value, known in (("rule", rule, tuple(RULES)), ("matching", matching, MATCHINGS)):
        if value not in known:
            raise UserError(f"{name} is {value!r}: choose {', '.join(known)}")
    if pairs_per_question < 1:
        raise UserError(f"pairs_per_question is {pairs_per_question}: it must be 1 or more")
    found = find_sources(sources, subset=subset, split=split)
    recipe = AnswersRecipe(rule=rule, matching=matching, pairs_per_question=pairs_per_question, **settings)
    for source in found:
        if isinstance(source, LocalFile):
            recipe = recipe.asking_as(source.path)
    return build(recipe, found, output, options or BuildOptions())


@dataclass(frozen=True, kw_only=True)
class AnswersRecipe(Recipe):
    rule: Rule = "strict"
    matching: Matching = "closest"
    pairs_per_question: int = 1

    stage = "prepare answers"
    no_fault = (ALL_RIGHT, ALL_WRONG)

    def settings(self) -> dict[str, Any]:
        return super().settings() | {
            "rule": self.rule,
            "matching": self.matching,
            "pairs_per_question": self.pairs_per_question,
            "answer_rules": ANSWER_RULES,
        }

    def asking_as(self, predictions: Path) -> "AnswersRecipe":
        """This recipe with the date of the prompts that these answers were written to, if `evaluate` wrote them.

        Raises:
            UserError: those prompts have another format than the pairs would have.
        """
        ways = ways_of(predictions.parent)
        if len(ways) != 1:
            return self
        (way,) = ways
        asked, mine = ({name: one[name] for name in _FORMAT} for one in (way, self.prompting.settings()))
        if found := differences(asked, mine):
            how = "; ".join(map(str.strip, found))
            raise UserError(
                f"{predictions}: these answers were written to prompts of another format ({how}): give the options "
                "that evaluate had, with --template chat also --tokenizer MODEL. To change the format on purpose, copy "
                "the file to a folder of its own"
            )
        if way["date"] and self.prompting.date is None:
            return replace(self, prompting=self.prompting.dated(way["date"]))
        return self

    def begin(self, scratch: Path, sources: Sequence[Source]) -> dict[str, int]:
        groups, faulty, counts = group_answers(super().rows(scratch, sources), rule=self.rule)
        with whole_file(scratch / _MATCHED) as out:
            for row in [*faulty, *(row for group in groups for row in self._rows_of(group))]:
                out.write(json.dumps(row._asdict()) + "\n")  # ASCII: a file name may contain bytes that are not text
        mixed = sum(not group.why_no_pair for group in groups)
        say(
            f"{counts['answers']:,} answers to {len(groups):,} questions: {counts['right answers']:,} right, "
            f"{counts['wrong answers']:,} wrong, {counts['unfinished answers']:,} unfinished or empty; "
            f"{mixed:,} questions have right and wrong ones"
        )
        return dict(counts) | {"questions": len(groups), "questions with right and wrong answers": mixed}

    def _rows_of(self, group: Group) -> Iterator[Row]:
        if group.why_no_pair:
            yield group.first._replace(fault=group.why_no_pair)
            return
        for right, wrong in matched(group, matching=self.matching, number=self.pairs_per_question, seed=self.seed):
            fields = {group.kind: group.question, CHOSEN: right.text, REJECTED: wrong.text}
            yield right.place._replace(value=wrong.others | right.others | fields | {_REJECTED_AT: wrong.place.place})

    def rows(self, scratch: Path, sources: Sequence[Source]) -> Iterator[Row]:
        with (scratch / _MATCHED).open(encoding="utf-8") as lines:
            for line in lines:
                yield Row(**json.loads(line))

    def open(self, scratch: Path) -> MakePair:
        of_question, chat = question_prompts(self.prompting), self.prompting.open()

        def make(row: TrackedRow, place: str, number: int) -> Made:
            kind = QUESTION if QUESTION in row else PROMPT
            asked, right, wrong = row[kind], row[CHOSEN], row[REJECTED]
            if kind == QUESTION:
                pair, note = of_question(asked, right, wrong)
            elif chat is not None:
                pair, note = chat.pair([{"role": "user", "content": asked}], chosen=right, rejected=wrong)
            else:
                pair, note = PreferencePair(prompt=asked, chosen_response=right, rejected_response=wrong), ""
            origin = {"source": place, _REJECTED_AT: row[_REJECTED_AT]}
            return Made(pair=pair, question=asked, origin=origin, notes=(note,))

        return make
