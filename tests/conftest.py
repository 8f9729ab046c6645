from hypothesis import settings

# Wall time says nothing on a shared machine.
settings.register_profile("project", deadline=None)
settings.load_profile("project")
