import json

import pytest

from nemo_minordpo.config import compose, load
from nemo_minordpo.files import to_json_line
from nemo_minordpo.records import Manifest, StepMetrics
from nemo_minordpo.train.folder.run_folder import RunFolder


def settings(*overrides):
    return load(
        compose(
            [
                "pretrained_checkpoint.restore_from_path=base.nemo", "model.data.data_prefix.train=[train.jsonl]",
                "exp_manager.explicit_log_dir=run", "model.dpo.ref_policy_kl_penalty=0.1", *overrides,
            ]
        )
    )  # fmt: skip


@pytest.fixture
def inputs(tmp_path):
    for name in ("base.nemo", "train.jsonl"):
        (tmp_path / name).write_text(name)
    return {"reference": [tmp_path / "base.nemo"], "train": [tmp_path / "train.jsonl"]}


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "run")


def prepare(folder, config, inputs, made=None):
    made = [] if made is None else made
    folder.prepare(config, inputs=inputs, make_data=lambda: made.append(folder.data("train").mkdir(parents=True)))
    return made


def test_a_new_folder_gets_configuration_and_manifest(folder, inputs):
    assert len(prepare(folder, settings(), inputs)) == 1
    manifest = json.loads((folder.path / "manifest.json").read_text())
    assert manifest["stage"] == "train"
    assert len(manifest["inputs"]) == 2
    assert manifest["settings"]["model.dpo.ref_policy_kl_penalty"] == 0.1
    assert "preference_loss: minordpo" in folder.config.read_text()


def test_the_manifest_records_how_the_prompts_were_made(folder, inputs):
    way = {"template": "chat", "system": None, "date": "2024-03-09", "template_options": {}}
    Manifest(stage="prepare hf", settings=way).write(inputs["train"][0].parent)
    prepare(folder, settings(), inputs)
    assert Manifest.read(folder.path).prompts == [way]


def test_the_same_command_resumes_also_at_another_layout(folder, inputs):
    prepare(folder, settings(), inputs)
    again = []
    folder.prepare(settings("trainer.devices=2", "trainer.dpo.save_interval=9"), inputs=inputs, make_data=again.clear)


def test_a_run_older_than_a_setting_resumes_with_its_default(folder, inputs):
    prepare(folder, settings(), inputs)
    file = folder.path / "manifest.json"
    manifest = json.loads(file.read_text())
    assert manifest["settings"].pop("model.dpo.gt_reward_scale") == 1.0
    file.write_text(json.dumps(manifest))
    folder.prepare(settings(), inputs=inputs, make_data=lambda: None)
    with pytest.raises(ValueError, match=r"model.dpo.gt_reward_scale: 1.0 there, 2.0 now"):
        prepare(folder, settings("model.dpo.gt_reward_scale=2"), inputs)


def test_another_objective_is_refused_with_the_differing_keys(folder, inputs):
    prepare(folder, settings(), inputs)
    before = folder.config.read_text()
    with pytest.raises(ValueError, match="belongs to a run with other settings") as error:
        prepare(folder, settings("model.dpo.ref_policy_kl_penalty=0.2", "loss=dpo"), inputs)
    lines = str(error.value).splitlines()
    assert "  model.dpo.preference_loss: minordpo there, dpo now" in lines
    assert "  model.dpo.ref_policy_kl_penalty: 0.1 there, 0.2 now" in lines
    assert len(lines) == 4
    assert folder.config.read_text() == before


@pytest.mark.parametrize("changed", ["reference", "train"])
def test_changed_contents_under_the_same_name_are_refused(folder, inputs, changed):
    """Upstream would read the reference again from the path, whatever it now contains."""
    prepare(folder, settings(), inputs)
    inputs[changed][0].write_text("something else")
    with pytest.raises(ValueError, match=f"sha256 of {changed}"):
        prepare(folder, settings(), inputs)


def test_the_same_contents_under_another_name_are_accepted(folder, inputs, tmp_path):
    prepare(folder, settings(), inputs)
    inputs["train"][0].rename(tmp_path / "moved.jsonl")
    moved = {**inputs, "train": [tmp_path / "moved.jsonl"]}
    folder.prepare(settings("model.data.data_prefix.train=[moved.jsonl]"), inputs=moved, make_data=lambda: None)


def test_a_folder_with_other_files_is_left_alone(folder, inputs):
    folder.path.mkdir()
    (folder.path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty and not a run folder"):
        prepare(folder, settings(), inputs)
    assert [path.name for path in folder.path.iterdir()] == ["thesis.txt"]


def test_a_failed_start_leaves_the_folder_free(folder, inputs):
    def fail():
        folder.data("train").mkdir(parents=True)
        raise ValueError("bad pair")

    with pytest.raises(ValueError, match="bad pair"):
        folder.prepare(settings(), inputs=inputs, make_data=fail)
    inputs["train"][0].write_text("mended")
    assert len(prepare(folder, settings("loss=dpo"), inputs)) == 1


def line(step, split="train"):
    return StepMetrics(split=split, step=step, epoch=0, consumed_pairs=step, values={"loss": 0.5})


def test_metrics_of_repeated_steps_are_removed(folder):
    folder.path.mkdir()
    with folder.open_metrics(after=0) as metrics:
        for step in (1, 2, 3, 4):
            metrics.write(to_json_line(line(step)))
        metrics.write('{"split": "train", "ste')  # killed while writing
    with folder.open_metrics(after=2) as metrics:
        metrics.write(to_json_line(line(3)))
    steps = [json.loads(text)["step"] for text in folder.metrics.read_text().splitlines()]
    assert steps == [1, 2, 3]


def test_a_replaced_attempt_cannot_write_to_the_new_metrics_file(folder):
    folder.path.mkdir()
    old = folder.open_metrics(after=0)
    old.write(to_json_line(line(1)))
    with folder.open_metrics(after=1) as new:
        new.write(to_json_line(line(2)))
        old.write(to_json_line(line(7)))
        old.close()
    assert [json.loads(text)["step"] for text in folder.metrics.read_text().splitlines()] == [1, 2]
