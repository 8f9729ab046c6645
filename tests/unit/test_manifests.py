"""The examples for Kubernetes and SkyPilot: their settings work, their numbers agree, their schemas accept them.

The schemas are those of kubeflow-training and SkyPilot, where these are installed.
"""

import copy
import re
import shlex
from pathlib import Path

import pytest
import yaml

LAUNCHERS = Path(__file__).parents[2] / "launchers"
KUBERNETES = yaml.safe_load((LAUNCHERS / "kubernetes.yaml").read_text())
SKYPILOT = yaml.safe_load((LAUNCHERS / "skypilot.yaml").read_text())


def settings_of(words):
    """The typed configuration of a torchrun command line."""
    config = pytest.importorskip("nemo_minordpo.config")
    module = words.index("nemo_minordpo.train")
    return config.load(config.compose(words[module + 1 :]))


def test_kubernetes_starts_a_run_of_its_size():
    spec = KUBERNETES["spec"]
    replicas = spec["pytorchReplicaSpecs"]
    (master,) = replicas["Master"]["template"]["spec"]["containers"]
    config = settings_of(master["command"] + master["args"])
    assert replicas["Worker"]["template"] == replicas["Master"]["template"]
    assert master["name"] == "pytorch"
    assert config.trainer.num_nodes == sum(part["replicas"] for part in replicas.values())
    assert str(config.trainer.devices) == spec["nprocPerNode"] == master["resources"]["limits"]["nvidia.com/gpu"]


def test_skypilot_starts_a_run_of_its_size():
    per_node = SKYPILOT["resources"]["accelerators"].partition(":")[2]
    given = {"$SKYPILOT_NUM_NODES": str(SKYPILOT["num_nodes"]), "$SKYPILOT_NUM_GPUS_PER_NODE": per_node}
    text = SKYPILOT["run"]
    for name, value in given.items():
        text = re.sub(rf"{re.escape(name)}\b", value, text)
    words = shlex.split(text.partition("torchrun")[2].replace("\\\n", " "))
    config = settings_of(words)
    assert (config.trainer.num_nodes, str(config.trainer.devices)) == (SKYPILOT["num_nodes"], per_node)
    assert {f"--nnodes={config.trainer.num_nodes}", f"--nproc-per-node={per_node}"} <= set(words)


@pytest.mark.parametrize("misspelt", [False, True])
def test_kubeflow_knows_every_field(misspelt):
    pytest.importorskip("kubeflow.training", reason="kubeflow-training is not installed")
    job = copy.deepcopy(KUBERNETES)
    if misspelt:
        job["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]["containers"][0]["comand"] = []
    unknown = {*unknown_fields("KubeflowOrgV1PyTorchJob", job)}
    assert unknown == ({"V1Container.comand"} if misspelt else set())


def unknown_fields(kind, value):
    """Fields that a type of Kubernetes' or Kubeflow's Python client does not have; TypeError for a wrong value."""
    from kubeflow.training import models as kubeflow
    from kubernetes.client import models as kubernetes

    if found := re.fullmatch(r"(list)\[(.*)\]|dict\(.*?, (.*)\)", kind):
        for item in value if found[1] else value.values():
            yield from unknown_fields(found[2] or found[3], item)
        return
    model = getattr(kubeflow, kind, None) or getattr(kubernetes, kind, None)
    if model is None:
        if not isinstance(value, {"str": str, "int": int, "bool": bool}[kind]):
            raise TypeError(f"{value!r} is no {kind}")
        return
    by_json_name = {name: attribute for attribute, name in model.attribute_map.items()}
    for name, inner in value.items():
        if name not in by_json_name:
            yield f"{kind}.{name}"
        else:
            yield from unknown_fields(model.openapi_types[by_json_name[name]], inner)
    model(**{by_json_name[name]: inner for name, inner in value.items() if name in by_json_name})  # what is required


@pytest.mark.parametrize("misspelt", [False, True])
def test_skypilot_accepts_the_task(misspelt):
    schemas = pytest.importorskip("sky.utils.schemas", reason="skypilot is not installed")
    from sky.utils import common_utils

    task = dict(SKYPILOT)
    if not misspelt:
        common_utils.validate_schema(task, schemas.get_task_schema(), "")
        return
    task["num_node"] = 2
    with pytest.raises(ValueError, match="num_nodes"):
        common_utils.validate_schema(task, schemas.get_task_schema(), "")
