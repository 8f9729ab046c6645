"""Read what `minordpo score` found of each pair."""

import math
from pathlib import Path

from nemo_minordpo import file_names
from nemo_minordpo.checked_json import parse_json
from nemo_minordpo.errors import UserError
from nemo_minordpo.files import read_lines

MOVED = "rewards/chosen"
# of a pair before training -> how a table names it
MEASURES = {"ches/per_token": "CHES per token", "ches/total": "CHES", "pairs/edit_distance": "edit distance"}

ScoredPairs = dict[str, dict[str, float]]  # place of a pair -> its metrics


def read_scored_pairs(folder: Path, notes: list[str]) -> ScoredPairs:
    """What `minordpo score` wrote to `folder` about each pair; {} if it did not, or with a note if it is damaged."""
    path = folder / file_names.PAIR_SCORES
    if not path.is_file():
        return {}
    found: ScoredPairs = {}
    try:
        for number, line in read_lines(path):
            row = parse_json(line)
            values = {name: float(row[name]) for name in (MOVED, *MEASURES)}
            if not isinstance(row["pair"], str) or not all(map(math.isfinite, values.values())):
                raise UserError(f"line {number}: a value is not a finite number")
            found[row["pair"]] = values
    except (ValueError, TypeError, KeyError, OverflowError) as error:  # UserError is a ValueError
        notes.append(f"{path}: not the scores of pairs against a reference, left out ({error!r})")
        return {}
    return found
