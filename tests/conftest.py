import time

import pytest
from hypothesis import settings

# Wall time says nothing on a shared machine.
settings.register_profile("project", deadline=None)
settings.load_profile("project")


@pytest.fixture
def move_to(monkeypatch):
    """A function that sets this process's time zone, for example to one with another date."""

    def to(zone):
        monkeypatch.setenv("TZ", zone)
        time.tzset()

    yield to
    monkeypatch.undo()
    time.tzset()
