"""The report's text and tables, shared by the Markdown file and the page."""

from collections.abc import Sequence
from dataclasses import dataclass

from nemo_minordpo.config import MARGINS
from nemo_minordpo.report.axes import Grid, number
from nemo_minordpo.report.candidates import Relation, relations
from nemo_minordpo.report.candidates import sentence as candidates_sentence
from nemo_minordpo.report.claims import Claim, claims
from nemo_minordpo.report.comparisons import SIGNIFICANT, Comparison, comparisons, comparisons_table, unpaired
from nemo_minordpo.report.comparisons import sentences as paired_sentences
from nemo_minordpo.report.curves import Curves
from nemo_minordpo.report.differing import Differing, differing
from nemo_minordpo.report.displacement import (
    Displacement,
    displacement,
    displacement_sentence,
    displacement_table,
)
from nemo_minordpo.report.health import Health
from nemo_minordpo.report.score_table import score_table
from nemo_minordpo.report.scores import DEGENERATE_ABOVE_BASE
from nemo_minordpo.report.summary import best_of, is_apart, listed, summary
from nemo_minordpo.report.table import Row, Table, rows_of


@dataclass(frozen=True, kw_only=True)
class Document:
    """Everything that a report says about a grid."""

    grid: Grid
    curves: Curves
    rows: list[Row]
    sentences: list[str]
    claims: list[Claim]
    relations: list[Relation]
    candidates_sentence: str
    comparisons: list[Comparison]
    differing: list[Differing]
    displacements: list[Displacement]
    notes: list[str]

    @property
    def explanation(self) -> list[str]:
        """What the numbers mean."""
        lines = [
            "Rewards are log-ratios of policy to reference in nats, without beta, averaged over the last tenth of the "
            "steps.",
            'Strict accuracy: the number after "the answer is" is correct. Flexible accuracy: the boxed number is '
            "correct or, without one, the number after ####, else the stated one, else the last one. Intervals are "
            '95 % (Wilson) over the questions. "Clearly" lower, higher or apart means that the intervals do not '
            "overlap.",
            "An answer is degenerate if it repeats itself. A run counts as degenerate if its rate of such answers is "
            f"at least {100 * DEGENERATE_ABOVE_BASE:.0f} percentage points above the base model's and the intervals do "
            "not overlap.",
        ]
        lines += margin_lines(self.grid)
        if any(len(setting.runs) > 1 for setting in self.grid.settings):
            lines.append(
                "All seeds answer the same questions, so the interval of their mean is that of a single run, widened "
                "to include every seed. It says little about other seeds. The interval over seeds and problems "
                "also covers other seeds."
            )
        lines += _of_paired_tests(self.comparisons)
        width = self.curves.steps.width
        if width > 1:
            lines.append(f"Curves are thinned: each point is the mean over {width} steps.")
        return lines

    @property
    def score_table(self) -> Table:
        return score_table(self.grid)

    @property
    def comparisons_table(self) -> Table:
        return comparisons_table(self.comparisons)

    @property
    def displacement_table(self) -> Table:
        return displacement_table(self.displacements)

    @property
    def displacement_sentence(self) -> str:
        return displacement_sentence(self.displacements)

    @property
    def best_table(self) -> Table:
        """The best and the second-best loss at each learning rate and beta with several scored losses."""
        rows = [
            [
                number(rate), number(beta), listed([one.loss for one in best_of(settings)]), str(settings[0].score),
                settings[1].loss, str(settings[1].score), "apart" if is_apart(*settings[:2]) else "overlap",
            ]
            for (rate, beta), settings in self.grid.scored().items()
            if len(settings) > 1
        ]  # fmt: skip
        return Table(["lr", "beta", "best", "strict, %", "next", "strict, %", "intervals"], rows)

    @property
    def claims_table(self) -> Table:
        rows = [[one.text, one.verdict, one.numbers] for one in self.claims]
        return Table(["the paper says", "here", "numbers"], rows)

    @property
    def health_table(self) -> Table:
        """One line per run."""
        heads = [
            "run", "state", "steps", "steps with no numbers", "alarm after step", "rejected below reference, %",
            "chosen below reference, %", "gradient norm, median", "gradient norm, largest", "pairs/s, median",
            "peak memory, GiB", "no answer, %", "unfinished, %",
        ]  # fmt: skip
        return Table(heads, [_health_cells(row, row.health) for row in self.rows if row.health is not None])

    @property
    def relations_table(self) -> Table:
        """One line per metric, one cell per group of runs, best correlation first; empty if none is known."""
        heads = ["metric, where it ended", "all runs (95 % interval)"]
        heads += self.grid.losses if len(self.grid.losses) > 1 else []
        if all(one.correlation is None for one in self.relations):
            return Table(heads, [])
        lines: dict[str, list[Relation]] = {}
        for one in self.relations:
            lines.setdefault(one.metric, []).append(one)
        ordered = sorted(lines.items(), key=lambda item: -abs(item[1][0].correlation or 0))
        rows = [[metric, *(_relation(one, whole=one.runs == "all") for one in group)] for metric, group in ordered]
        return Table(heads, rows)


def margin_lines(grid: Grid) -> list[str]:
    """What the losses compare, if one of them does not compare the margin; and which of them have no reference."""
    names = dict.fromkeys(name for run in grid.runs for name in run.losses if name in MARGINS)
    others = [f"{name}: {MARGINS[name]}" for name in names if MARGINS[name] != MARGINS["dpo"]]
    compared = f"The margin is {MARGINS['dpo']} for every loss. What a loss itself compares: {'; '.join(others)}."
    free = dict.fromkeys(one.loss for one in grid.settings if not one.has_reference)
    left_out = (
        f"No reference: {', '.join(free)}. Its rewards in the curves are log-probabilities; tables leave them out."
    )
    return [compared] * bool(others) + [left_out] * bool(free)


def document_of(grid: Grid, notes: Sequence[str] = ()) -> Document:
    """The document; `notes` are those on the base model."""
    found, compared = relations(grid), comparisons(grid)
    of_runs = [f"{run.name}: {note}" for run in grid.runs for note in run.notes]
    return Document(
        grid=grid,
        curves=Curves(grid),
        rows=rows_of(grid),
        sentences=[*summary(grid), *paired_sentences(compared)],
        claims=claims(grid),
        relations=found,
        candidates_sentence=candidates_sentence(grid, found),
        comparisons=compared,
        differing=differing(grid),
        displacements=_displacements(grid),
        notes=grid.left_out + grid.notes + list(notes) + unpaired(grid, compared) + of_runs,
    )


def _displacements(grid: Grid) -> list[Displacement]:
    """Of each setting with scored pairs, by learning rate and beta."""
    found = [
        displacement(
            [run.scored_pairs for run in one.runs if run.scored_pairs],
            name=one.name, loss=one.loss, learning_rate=one.learning_rate, beta=one.beta,
        )
        for settings in grid.places().values()
        for one in settings
    ]  # fmt: skip
    return [one for one in found if one is not None]


def _of_paired_tests(found: list[Comparison]) -> list[str]:
    """Which paired tests were used, and what they assume."""
    lines = []
    if any(one.num_seeds == 1 for one in found):
        lines.append(
            "Paired tests with one seed: McNemar's exact test on the problems that only one of two models solved. It "
            "is about other problems, not about other seeds."
        )
    if any(one.num_seeds > 1 for one in found):
        lines.append(
            "Paired tests with several seeds: Behrens and Fisher's, with one error from the seeds and one from the "
            "problems. It is about other seeds and other problems. With two or three seeds, only differences far "
            "larger than those between seeds are significant."
        )
    if found:
        lines.append(
            f"A difference is significant if its p-value, after Holm's correction for all {len(found)} comparisons of "
            f"this report, is at most {SIGNIFICANT}."
        )
    return lines


def _health_cells(row: Row, health: Health) -> list[str]:
    score = row.score
    steps = str(health.steps) if health.max_steps is None else f"{health.steps} of {health.max_steps}"
    none = str(health.not_finite) if not health.not_finite else f"{health.not_finite}, from {health.first_not_finite}"
    return [
        row.model, health.state, steps, none, "-" if health.first_alarm is None else str(health.first_alarm),
        _percent(health.rejected_below), _percent(health.chosen_below),
        _short(health.grad_norm_median), _short(health.grad_norm_largest),
        _short(health.pairs_per_s), _short(health.peak_memory_gib),
        _percent(score.no_answer_rate if score else None), _percent(score.unfinished_rate if score else None),
    ]  # fmt: skip


def _relation(one: Relation, *, whole: bool) -> str:
    if one.correlation is None:
        return f"- (n = {one.count})"
    interval = f" ({one.low:+.2f} to {one.high:+.2f})" if whole else ""
    return f"{one.correlation:+.2f}{interval}, n = {one.count}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
