"""The page's section on problems where models differ: question, expected answer and the answers side by side."""

from html import escape

from nemo_minordpo.records import Prediction
from nemo_minordpo.report.differing import OTHER_FORMAT, RIGHT, WRONG, Differing, Shown

# Characters of a longer answer that are shown: its beginning, and its end, where the result or a loop is.
_BEGINNING, _END = 900, 500
_CLASSES = {RIGHT: "seen", OTHER_FORMAT: "unclear", WRONG: "not-seen"}


def problems_section(found: list[Differing]) -> str:
    """HTML that needs no script: one foldable part for each learning rate and beta, the first one open."""
    parts = []
    for number, one in enumerate(found):
        is_open = " open" if number == 0 else ""
        title = f"{one.name}: {', '.join(one.models)} differ on {one.outcomes.total()} of {one.num_problems} problems"
        body = _outcomes(one) + "".join(_problem(one, shown) for shown in one.shown)
        parts.append(f"<details{is_open}><summary>{escape(title)}</summary>{body}</details>")
    return "".join(parts)


def _outcomes(one: Differing) -> str:
    """How often each outcome occurs, the commonest first."""
    if not one.outcomes:
        return ""
    head = "".join(f"<th scope=col>{escape(text)}</th>" for text in ["problems", *one.models])
    rows = "".join(
        f"<tr><td>{count}</td>{''.join(f'<td>{_state(state)}</td>' for state in outcome)}</tr>"
        for outcome, count in sorted(one.outcomes.items(), key=lambda item: (-item[1], item[0]))
    )
    shown = (
        f"<p class=quiet>Shown below: {len(one.shown)} of {one.outcomes.total()} problems, every outcome in turn.</p>"
    )
    return f"<div class=wide><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>{shown}"


def _problem(one: Differing, shown: Shown) -> str:
    answers = "".join(
        f"<div class=answer><h4>{escape(model)} {_state(state)}{_more(prediction)}</h4>{_text(prediction.output)}</div>"
        for model, prediction, state in zip(one.models, shown.predictions, shown.outcome, strict=True)
    )
    return (
        f"<article class=problem><p><b>Problem {shown.problem.index + 1}.</b> {escape(shown.problem.question)} "
        f"<b>Expected: {escape(shown.problem.gold)}</b></p><div class=answers>{answers}</div></article>"
    )


def _state(state: str) -> str:
    return f'<span class="verdict {_CLASSES[state]}">{state}</span>'


def _more(prediction: Prediction) -> str:
    """What else is wrong with an answer."""
    faults = [f"degenerate ({prediction.degenerate})"] if prediction.degenerate else []
    faults += [] if prediction.finished else ["cut at the token limit"]
    return "".join(f' <span class="verdict not-seen">{escape(fault)}</span>' for fault in faults)


def _text(output: str) -> str:
    left_out = len(output) - _BEGINNING - _END
    if left_out <= 0:
        return f"<pre>{escape(output)}</pre>"
    gap = f"<i>[{left_out} characters left out]</i>"
    return f"<pre>{escape(output[:_BEGINNING])}\n{gap}\n{escape(output[-_END:])}</pre>"
