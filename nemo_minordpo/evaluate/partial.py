"""Predictions as they come, so that an interrupted evaluation resumes where it was."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nemo_minordpo import file_names
from nemo_minordpo.checked_json import read_json_object
from nemo_minordpo.errors import UserError
from nemo_minordpo.files import refuse_existing, to_json_line, write_json
from nemo_minordpo.flat import differences, flatten
from nemo_minordpo.records import Prediction

PREDICTIONS_NAME = "predictions.partial.jsonl"
KEY_NAME = "predictions.partial.key.json"


def is_interrupted(folder: Path) -> bool:
    """Whether `folder` holds an evaluation that was not finished."""
    return (folder / KEY_NAME).is_file()


def interrupted_date(folder: Path) -> str | None:
    """What the chat template of an unfinished evaluation shows as the date; None where it shows none."""
    if not is_interrupted(folder):
        return None
    return read_json_object(folder / KEY_NAME).get("settings", {}).get("date")


class PartialPredictions:
    """`predictions.partial.jsonl` in the output folder, and the key of what it belongs to beside it.

    The key holds everything that a prediction depends on beyond rounding: the sha256 of the model's files and of
    the questions, and the settings. Batch size is not in it: a run that ran out of memory may resume with less.
    """

    def __init__(self, folder: Path, *, key: dict[str, Any], overwrite: bool) -> None:
        """Begin in `folder`, or resume there.

        Raises:
            ValueError: the folder holds a finished evaluation or something else, or an unfinished one of another
                key, and `overwrite` is False; or what is there cannot be read.
        """
        self._path, self._key_path = folder / PREDICTIONS_NAME, folder / KEY_NAME
        self.found: dict[int, Prediction] = {}
        if is_interrupted(folder) and not overwrite:
            self._refuse_other_key(key)
            self.found = self._read()
        else:
            refuse_existing(folder, overwrite=overwrite)
            folder.mkdir(parents=True, exist_ok=True)
            for name in (PREDICTIONS_NAME, file_names.PREDICTIONS, file_names.SCORE, file_names.MANIFEST):
                (folder / name).unlink(missing_ok=True)
            write_json(self._key_path, key)

    def add(self, predictions: list[Prediction]) -> None:
        """Append; they are on disk when this returns."""
        with self._path.open("a", encoding="utf-8") as out:
            out.writelines(to_json_line(one) for one in predictions)
        self.found.update({one.index: one for one in predictions})

    def remove(self) -> None:
        """Take the files away once the whole is written; the key goes last, so that this too can be interrupted."""
        self._path.unlink(missing_ok=True)
        self._key_path.unlink()

    def _refuse_other_key(self, key: dict[str, Any]) -> None:
        # not by dots, which are in the names of files
        before, now = (flatten(one, separator="/") for one in (read_json_object(self._key_path), key))
        changes = differences(before, now)
        if changes:
            raise UserError(
                "\n".join([f"{self._path.parent} holds an unfinished evaluation of something else:", *changes])
                + "\nchoose another folder, or pass --overwrite to begin anew"
            )

    def _read(self) -> dict[int, Prediction]:
        text = self._path.read_text(encoding="utf-8", errors="replace") if self._path.is_file() else ""
        # A run that was killed while it wrote leaves half a line at the end: that question is asked again.
        whole, _, half = text.rpartition("\n")
        found = {}
        for number, line in enumerate(whole.split("\n") if whole else [], start=1):
            try:
                one = Prediction(**json.loads(line))
            except (ValueError, TypeError) as error:
                raise UserError(
                    f"{self._path}:{number}: not a prediction ({error}); begin anew with --overwrite"
                ) from error
            found[one.index] = one
        if half:
            self._path.write_text("".join(to_json_line(asdict(one)) for one in found.values()), encoding="utf-8")
        return found
