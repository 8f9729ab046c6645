from pathlib import Path

import pytest
from hypothesis import settings

# Wall time says nothing on a shared machine.
settings.register_profile("project", deadline=None)
settings.load_profile("project")

_UNIT = Path(__file__).parent / "unit"


def pytest_collection_modifyitems(items):
    """For `-n 2 --dist loadgroup`: files of unit tests side by side, all others, which start processes, in turn."""
    for item in items:
        group = str(item.path) if item.path.is_relative_to(_UNIT) else "one after another"
        item.add_marker(pytest.mark.xdist_group(group))
