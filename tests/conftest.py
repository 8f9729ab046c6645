import time

import pytest
from hypothesis import settings

# Wall time says nothing on a shared machine.
settings.register_profile("project", deadline=None)
settings.load_profile("project")


@pytest.fixture
def move_to(monkeypatch):
    """A function that puts this process into a time zone, such as one with another day."""

    def to(zone):
        monkeypatch.setenv("TZ", zone)
        time.tzset()

    yield to
    monkeypatch.undo()
    time.tzset()
