from tests.unit.evaluate.conftest import model_folder

__all__ = ["model_folder"]
