"""Saves predictions as they arrive, so that an interrupted evaluation can resume."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from nemo_minordpo import file_names
from nemo_minordpo.checked_json import read_json_object
from nemo_minordpo.errors import UserError
from nemo_minordpo.files import refuse_existing, to_json_line, write_json
from nemo_minordpo.flat import differences, flatten
from nemo_minordpo.records import Prediction, SampledPrediction, prediction_from_json

PREDICTIONS_NAME = "predictions.partial.jsonl"
KEY_NAME = "predictions.partial.key.json"


def is_interrupted(folder: Path) -> bool:
    """Whether `folder` holds an unfinished evaluation."""
    return (folder / KEY_NAME).is_file()


def interrupted_date(folder: Path) -> str | None:
    """The date in the chat template of an unfinished evaluation; None if it shows none."""
    if not is_interrupted(folder):
        return None
    return read_json_object(folder / KEY_NAME).get("settings", {}).get("date")


class PartialPredictions:
    """`predictions.partial.jsonl` in the output folder, and its key in a second file.

    The key holds everything, apart from rounding, that a prediction depends on: the sha256 of the model's files and
    of the questions, the settings and the version of the code. The batch size is not part of it: an evaluation that
    ran out of memory may resume with a smaller one.
    """

    def __init__(self, folder: Path, *, key: dict[str, Any], overwrite: bool) -> None:
        """Start in `folder`, or resume there.

        Raises:
            ValueError: the unfinished evaluation cannot be read; or, without `overwrite`, it has another key, or the
                folder holds a finished evaluation or other files.
        """
        self._path, self._key_path = folder / PREDICTIONS_NAME, folder / KEY_NAME
        self.found: dict[tuple[int, int], Prediction] = {}  # by question and sample
        if is_interrupted(folder) and not overwrite:
            self._refuse_other_key(key)
            self.found = self._read()
        else:
            refuse_existing(folder, overwrite=overwrite)
            folder.mkdir(parents=True, exist_ok=True)
            for name in (PREDICTIONS_NAME, file_names.PREDICTIONS, file_names.SCORE, file_names.MANIFEST):
                (folder / name).unlink(missing_ok=True)
            write_json(self._key_path, key)

    def add(self, prediction: Prediction) -> None:
        """Append to the file; the prediction is written when this returns."""
        with self._path.open("a", encoding="utf-8") as out:
            out.write(to_json_line(prediction))
        self.found[_place(prediction)] = prediction

    def remove(self) -> None:
        """Delete the files once the evaluation is complete; the key goes last, so that this too may be interrupted."""
        self._path.unlink(missing_ok=True)
        self._key_path.unlink()

    def _refuse_other_key(self, key: dict[str, Any]) -> None:
        # not dots, which occur in file names
        before, now = (flatten(one, separator="/") for one in (read_json_object(self._key_path), key))
        changes = differences(before, now)
        if changes:
            raise UserError(
                "\n".join(
                    [f"{self._path.parent} holds an unfinished evaluation with other inputs or settings:", *changes]
                )
                + "\nchoose another folder, or start over with --overwrite"
            )

    def _read(self) -> dict[tuple[int, int], Prediction]:
        text = self._path.read_text(encoding="utf-8", errors="replace") if self._path.is_file() else ""
        # A process killed in the middle of a write leaves half a line at the end: that question is asked again.
        whole, _, half = text.rpartition("\n")
        found = {}
        for number, line in enumerate(whole.split("\n") if whole else [], start=1):
            try:
                one = prediction_from_json(line)
            except (ValueError, TypeError) as error:
                raise UserError(
                    f"{self._path}:{number}: not a prediction ({error}); start over with --overwrite"
                ) from error
            found[_place(one)] = one
        if half:
            self._path.write_text("".join(to_json_line(asdict(one)) for one in found.values()), encoding="utf-8")
        return found


def _place(prediction: Prediction) -> tuple[int, int]:
    """The numbers of the question and of the sample."""
    return prediction.index, prediction.sample if isinstance(prediction, SampledPrediction) else 0
