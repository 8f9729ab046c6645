"""The stories of the arithmetic problems: a question in sentences, and an answer with one calculation per line.

The vocabulary is deliberately small, so that a model of about a million parameters can learn it; the difficulty is in
the numbers. Every result is whole and at least 2 ("1 apples" would be wrong English).
"""

import operator
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

_PEOPLE = (
    ("Tom", "he"), ("Ben", "he"), ("Sam", "he"), ("Max", "he"), ("Leo", "he"), ("Jack", "he"),
    ("Mia", "she"), ("Anna", "she"), ("Lily", "she"), ("Emma", "she"), ("Kate", "she"), ("Rosa", "she"),
)  # fmt: skip
_THINGS = ("apples", "books", "pens", "cookies", "coins", "cards", "stamps", "eggs", "shells", "balls", "toys", "beads")
_CONTAINERS = (("box", "boxes"), ("bag", "bags"), ("basket", "baskets"), ("jar", "jars"))
_GOODS = (("pen", "pens"), ("book", "books"), ("ball", "balls"), ("toy", "toys"), ("cake", "cakes"), ("hat", "hats"))
_PRIZES = ("bike", "phone", "camera", "guitar", "watch")
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday")
_PLANTS = ("roses", "trees", "tulips", "carrots", "beans")

_OPERATORS: dict[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.floordiv,
}


@dataclass
class Story:
    """A problem under construction: the sentences of the question and the lines of the answer, in order."""

    rng: random.Random
    sentences: list[str] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)
    result: int = 0

    def tell(self, *sentences: str) -> None:
        self.sentences += sentences

    def calculate(self, before: str, left: int, sign: str, right: int, after: str) -> int:
        """Add the line "`before` left sign right = <<...>>result `after`" and return the result.

        `before` ends with "$" if the result is money; the sign is then written before the result, as in GSM8K.
        """
        self.result = _OPERATORS[sign](left, right)
        assert self.result >= 0, f"{left} {sign} {right}"
        assert sign != "/" or self.result * right == left, f"{left} {sign} {right}"
        words, money = (before[:-1].rstrip(), "$") if before.endswith("$") else (before, "")
        mark = f"<<{left}{sign}{right}={self.result}>>"
        after = after if after == "." else f" {after}"
        self.steps.append(f"{words} {left} {sign} {right} = {money}{mark}{self.result}{after}")
        return self.result

    def number(self, low: int, high: int) -> int:
        return self.rng.randint(low, high)

    def people(self, count: int) -> list[tuple[str, str]]:
        """`count` different (name, pronoun) pairs."""
        return self.rng.sample(_PEOPLE, count)

    def maybe(self) -> bool:
        return self.rng.random() < 0.5


def _holdings(story: Story) -> None:
    """What a person has after one to three events."""
    (name, pronoun), (friend, _) = story.people(2)
    things = story.rng.choice(_THINGS)
    events = story.number(2, 3)
    if story.maybe():
        have = story.number(10, 60)
        story.tell(f"{name} has {have} {things}.")
    else:
        box, boxes = story.rng.choice(_CONTAINERS)
        count, each = story.number(2, 9), story.number(3, 9)
        story.tell(f"{name} has {count} {boxes} with {each} {things} in each {box}.")
        have = story.calculate(f"{name} has", count, "*", each, f"{things}.")
        events -= 1
    for _ in range(events):
        have = _event(story, have, name=name, pronoun=pronoun.capitalize(), friend=friend, things=things)
    story.tell(f"How many {things} does {name} have now?")


def _event(story: Story, have: int, *, name: str, pronoun: str, friend: str, things: str) -> int:
    """One gain, loss, halving or doubling; returns the new amount."""
    kind = story.rng.choice(("gain", "gain", "loss", "loss", "half", "double"))
    if kind == "half" and have % 2 == 0 and have >= 4:
        story.tell(f"{pronoun} gives half of the {things} to {friend}.")
        return story.calculate(f"{name} keeps", have, "/", 2, f"{things}.")
    if kind == "double" and have <= 50:
        story.tell(f"Then {name} wins as many {things} as {pronoun.lower()} has.")
        return story.calculate(f"{name} then has", have, "*", 2, f"{things}.")
    if kind == "gain" or have < 8:
        more = story.number(3, 30)
        story.tell(story.rng.choice((f"{friend} gives {name}", f"{pronoun} buys")) + f" {more} more {things}.")
        return story.calculate(f"{name} then has", have, "+", more, f"{things}.")
    less = story.number(2, min(30, have - 3))
    verb = story.rng.choice(("loses", "sells", f"gives {friend}"))
    story.tell(f"{pronoun} {verb} {less} {things}.")
    return story.calculate(f"{name} has", have, "-", less, f"{things} left.")


def _shopping(story: Story) -> None:
    """Two kinds of goods, sometimes with change."""
    ((name, pronoun),) = story.people(1)
    (one, ones), (two, twos) = story.rng.sample(_GOODS, 2)
    price, other_price = story.number(2, 12), story.number(2, 12)
    count, other_count = story.number(2, 9), story.number(2, 9)
    story.tell(f"A {one} costs ${price} and a {two} costs ${other_price}.")
    story.tell(f"{name} buys {count} {ones} and {other_count} {twos}.")
    first = story.calculate(f"The {ones} cost $", count, "*", price, ".")
    second = story.calculate(f"The {twos} cost $", other_count, "*", other_price, ".")
    total = story.calculate(f"{name} pays $", first, "+", second, "in all.")
    if story.maybe():
        story.tell(f"How much does {name} pay in all?")
        return
    purse = total + story.number(2, 30)
    story.tell(f"If {pronoun} has ${purse}, how much money is left?")
    story.calculate(f"{name} has $", purse, "-", total, "left.")


def _comparison(story: Story) -> None:
    """Two or three people, each with more, fewer or several times as many things as the one before."""
    people = [name for name, _ in story.people(story.number(2, 3))]
    things = story.rng.choice(_THINGS)
    amounts = [story.number(6, 30)]
    story.tell(f"{people[0]} has {amounts[0]} {things}.")
    for before, name in pairwise(people):
        amounts.append(_compared(story, amounts[-1], before=before, name=name, things=things))
    story.tell(f"How many {things} do they have together?")
    total = amounts[0]
    for amount in amounts[1:]:
        total = story.calculate("Together that is", total, "+", amount, f"{things}.")


def _compared(story: Story, amount: int, *, before: str, name: str, things: str) -> int:
    kind = story.rng.choice(("more", "fewer", "times"))
    if kind == "times" and amount <= 30:
        times = story.number(2, 4)
        story.tell(f"{name} has {times} times as many {things} as {before}.")
        return story.calculate(f"{name} has", amount, "*", times, f"{things}.")
    if kind == "fewer" and amount >= 6:
        fewer = story.number(2, min(30, amount - 3))
        story.tell(f"{name} has {fewer} fewer {things} than {before}.")
        return story.calculate(f"{name} has", amount, "-", fewer, f"{things}.")
    more = story.number(2, 30)
    story.tell(f"{name} has {more} more {things} than {before}.")
    return story.calculate(f"{name} has", amount, "+", more, f"{things}.")


def _wages(story: Story) -> None:
    """Hours on two days at an hourly wage, sometimes with an expense."""
    ((name, pronoun),) = story.people(1)
    wage, hours, more_hours = story.number(4, 12), story.number(2, 6), story.number(2, 6)
    day, other_day = story.rng.sample(_DAYS, 2)
    story.tell(f"{name} earns ${wage} an hour.")
    story.tell(f"{pronoun.capitalize()} works {hours} hours on {day} and {more_hours} hours on {other_day}.")
    total_hours = story.calculate(f"{name} works", hours, "+", more_hours, "hours.")
    earned = story.calculate(f"{name} earns $", wage, "*", total_hours, ".")
    if story.maybe():
        story.tell(f"How much does {name} earn?")
        return
    spent = story.number(5, min(30, earned - 2))
    story.tell(f"{pronoun.capitalize()} spends ${spent} on food.", "How much money is left?")
    story.calculate(f"{name} has $", earned, "-", spent, "left.")


def _sharing(story: Story) -> None:
    """Things are gained or set aside, then shared equally among friends."""
    (name, pronoun), (friend, _) = story.people(2)
    things = story.rng.choice(_THINGS)
    friends, part = story.number(2, 9), story.number(3, 12)
    total = friends * part
    if story.maybe():
        have = story.number(2, total - 2)
        story.tell(f"{name} has {have} {things} and {friend} gives {name} {total - have} more {things}.")
        story.calculate(f"{name} then has", have, "+", total - have, f"{things}.")
    else:
        kept = story.number(2, 30)
        story.tell(f"{name} has {total + kept} {things} and keeps {kept} {things}.")
        story.calculate(f"{name} has", total + kept, "-", kept, f"{things} left.")
    story.tell(f"{pronoun.capitalize()} shares the {things} equally with {friends} friends.")
    story.calculate("Each friend gets", total, "/", friends, f"{things}.")
    if story.maybe():
        story.tell(f"How many {things} does each friend get?")
        return
    own = story.number(2, 30)
    story.tell(f"One friend had {own} {things} before.", f"How many {things} does that friend have now?")
    story.calculate("That friend has", own, "+", part, f"{things}.")


def _trip(story: Story) -> None:
    """Miles driven at a speed, then more miles or the miles left."""
    ((name, pronoun),) = story.people(1)
    speed, hours, more = story.number(5, 30), story.number(2, 5), story.number(3, 30)
    story.tell(f"{name} drives {hours} hours at {speed} miles an hour.")
    driven = story.calculate(f"{name} drives", speed, "*", hours, "miles.")
    if story.maybe():
        story.tell(f"Then {pronoun} drives {more} more miles.", f"How many miles does {name} drive in all?")
        story.calculate(f"{name} drives", driven, "+", more, "miles in all.")
        return
    story.tell(f"The way is {driven + more} miles long.", "How many miles are left?")
    story.calculate(f"{name} has", driven + more, "-", driven, "miles left.")


def _reading(story: Story) -> None:
    """A number of pages per day, then the rest in equal parts."""
    ((name, pronoun),) = story.people(1)
    pages, days = story.number(3, 15), story.number(2, 7)
    rest_days, rest_pages = story.number(2, 6), story.number(3, 12)
    length = pages * days + rest_days * rest_pages
    story.tell(f"{name} reads {pages} pages a day for {days} days.", f"The book has {length} pages.")
    read = story.calculate(f"{name} reads", pages, "*", days, "pages.")
    left = story.calculate("There are", length, "-", read, "pages left.")
    if story.maybe():
        story.tell("How many pages are left?")
        return
    story.tell(f"How many pages a day must {pronoun} read to end the book in {rest_days} more days?")
    story.calculate(f"{name} must read", left, "/", rest_days, "pages a day.")


def _garden(story: Story) -> None:
    """Rows of plants, some of which die, sometimes with other plants added."""
    ((name, _),) = story.people(1)
    plants, others = story.rng.sample(_PLANTS, 2)
    rows, each = story.number(3, 9), story.number(4, 12)
    story.tell(f"{name} has a garden with {rows} rows of {each} {plants}.")
    have = story.calculate("There are", rows, "*", each, f"{plants}.")
    gone = story.number(2, min(30, have - 3))
    story.tell(f"{gone} of the {plants} die.")
    have = story.calculate("There are", have, "-", gone, f"{plants} left.")
    if story.maybe():
        story.tell(f"How many {plants} are left?")
        return
    extra = story.number(3, 30)
    story.tell(f"There are also {extra} {others}.", "How many plants are in the garden now?")
    story.calculate("There are", have, "+", extra, "plants.")


def _saving(story: Story) -> None:
    """Money saved weekly towards a price."""
    ((name, pronoun),) = story.people(1)
    weekly, weeks, owned, missing = story.number(3, 12), story.number(2, 9), story.number(5, 30), story.number(4, 30)
    prize = story.rng.choice(_PRIZES)
    story.tell(f"{name} has ${owned} and saves ${weekly} a week for {weeks} weeks.")
    saved = story.calculate(f"{name} saves $", weekly, "*", weeks, ".")
    have = story.calculate(f"{name} has $", owned, "+", saved, ".")
    if story.maybe():
        story.tell(f"How much money does {name} have then?")
        return
    story.tell(f"A {prize} costs ${have + missing}.", f"How much more money does {pronoun} need to buy it?")
    story.calculate(f"{name} needs $", have + missing, "-", have, "more.")


FAMILIES: tuple[Callable[[Story], None], ...] = (
    _holdings, _holdings, _shopping, _comparison, _wages, _sharing, _trip, _reading, _garden, _saving,
)  # fmt: skip
