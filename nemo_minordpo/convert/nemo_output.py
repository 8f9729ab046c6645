"""Write a `.nemo` and the files next to it: the tokenizer, `<stem>.tokenizer/`, and `<stem>.manifest.json`."""

import tarfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nemo_minordpo import file_names
from nemo_minordpo.convert import nemo_config
from nemo_minordpo.errors import UserError
from nemo_minordpo.files import publish, refuse_existing, write_json
from nemo_minordpo.records import Manifest
from nemo_minordpo.sidecars import copy_sidecars, tokenizer_folder


def require_free_name(nemo: Path, *, overwrite: bool) -> None:
    """Check the output's name before anything is written.

    Raises:
        UserError: the name does not end in .nemo, or an output exists and `overwrite` is False.
    """
    if nemo.suffix != ".nemo":
        raise UserError(f"{nemo}: the name of a NeMo checkpoint ends in .nemo")
    for path in (nemo, tokenizer_folder(nemo), file_names.manifest_of_nemo(nemo)):
        refuse_existing(path, overwrite=overwrite)


def publish_nemo(folder: Path, nemo: Path, *, config: dict[str, Any], sidecars_of: Path, manifest: Manifest) -> None:
    """Pack the weights in a staging folder into a `.nemo` and move everything into place.

    Args:
        folder: staging folder with the weights, under NeMo's names.
        nemo: the file to write.
        config: the model config.
        sidecars_of: Hugging Face folder to copy the sidecars from.
        manifest: manifest of the conversion.
    """
    sidecars = folder / "tokenizer"
    sidecars.mkdir()
    copy_sidecars(sidecars_of, sidecars)
    write_json(folder / file_names.MANIFEST, asdict(manifest))
    nemo_config.write_model_config(folder / file_names.MODEL_CONFIG, config)
    with tarfile.open(folder / nemo.name, "w:") as archive:
        # NeMo finds the members by these names
        archive.add(folder / file_names.MODEL_CONFIG, f"./{file_names.MODEL_CONFIG}")
        archive.add(folder / file_names.NEMO_WEIGHTS, f"./{file_names.NEMO_WEIGHTS}")
    # the checkpoint last: if it exists, everything else does
    publish(sidecars, tokenizer_folder(nemo))
    publish(folder / file_names.MANIFEST, file_names.manifest_of_nemo(nemo))
    publish(folder / nemo.name, nemo)
