"""The card of an exported model, line by line: of runs written as training writes them, and without a run."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from test_convert_adapters import RANK, random_adapters, stacked, write_run
from test_convert_round_trip import read_all, unpack
from tiny_hf import write_hf

from nemo_minordpo.config import compose, load
from nemo_minordpo.convert.card_facts import license_of
from nemo_minordpo.convert.hf_to_nemo import import_hf
from nemo_minordpo.convert.nemo_to_hf import export_hf
from nemo_minordpo.convert.peft_folder import export_peft
from nemo_minordpo.files import sha256_of_file, write_json, write_jsonl
from nemo_minordpo.hugging_face import load_tokenizer
from nemo_minordpo.records import Manifest, StepMetrics
from nemo_minordpo.train.folder.run_folder import RunFolder

BASE_CARD = "---\nlicense: apache-2.0\nlibrary_name: vllm\ntags: [chat]\n---\n# The base model\n\nScores 99 %.\n"
COUNTS = {"train": {"used": 182, "longer than model.data.seq_length": 2}, "validation": {"used": 16}}


@pytest.fixture
def hf(tmp_path: Path) -> Path:
    folder = write_hf(tmp_path / "hf", "qwen2")
    (folder / "README.md").write_text(BASE_CARD)
    return folder


def lines_of(values: dict[str, Any]) -> list[StepMetrics]:
    """Four steps, validated after the second and the fourth; the loss is 1 / step, of validation 2 / step."""
    return [
        StepMetrics(
            split=split, step=step, epoch=0, consumed_pairs=8 * step,
            values={"loss": top / step, "step_s": 9.0} | values,
        )
        for step in range(1, 5)
        for split, top in (("train", 1), ("validation", 2))
        if split == "train" or step % 2 == 0
    ]  # fmt: skip


def trained(
    place: Path, base: Path, *overrides: str, validation: bool = True, values: dict[str, Any] | None = None
) -> Path:
    """A finished run as `minordpo train` leaves it, on pairs as `minordpo prepare hf` leaves them."""
    pairs, run = place / "pairs", RunFolder(place / "runs/mine")
    splits = ["train", *(["validation"] if validation else [])]
    for split in splits:
        write_jsonl(pairs / f"{split}.jsonl", [{"prompt": split}])
    Manifest(
        stage="prepare hf",
        inputs={"argilla/pairs": "d1", str(place / "private/extra.jsonl"): "d2", "hf/base/tokenizer.json": "d3"},
        roles={"sources": ["argilla/pairs", str(place / "private/extra.jsonl")], "hub": ["argilla/pairs"]},
        settings={
            "template": "chat", "system": "Be brief | be `plain`.", "tokenizer": str(place / "private/hf"),
            "date": None, "num_validation": 0,
        },
        counts={"rows": 1234, "pairs": 200},
    ).write(pairs)  # fmt: skip
    config = load(
        compose(
            [
                f"pretrained_checkpoint.restore_from_path={base}", "model.dpo.ref_policy_kl_penalty=0.1",
                f"model.data.data_prefix.train=[{pairs}/train.jsonl]", f"exp_manager.explicit_log_dir={run.path}",
                "model.global_batch_size=8", "model.optim.lr=1e-5", "model.data.seq_length=512", *overrides,
            ]
        )
    )  # fmt: skip

    def make_data() -> None:
        for split in splits:
            write_json(run.data(split) / "counts.json", COUNTS[split])

    tokenizer = base.with_name("base.tokenizer")
    files = {split: [pairs / f"{split}.jsonl"] for split in splits}
    run.prepare(config, inputs={"reference": [base], "tokenizer": [tokenizer], **files}, make_data=make_data)
    found = lines_of({} if values is None else values)
    write_jsonl(run.metrics, [line for line in found if line.split in splits])
    shutil.copyfile(base, run.nemo)
    shutil.copytree(tokenizer, run.path / "model.tokenizer")
    shutil.copytree(unpack(base, run.path / "unpacked") / "model_weights", run.checkpoints / "step_000002")
    shutil.copyfile(run.path / "unpacked/model_config.yaml", run.path / "model_config.yaml")
    shutil.rmtree(run.path / "unpacked")
    return run.path


def exported(source: Path, **options: Any) -> ModelCard:
    """The card as huggingface_hub reads it."""
    output = source.parents[1] / "out"
    export_hf(source, output, overwrite=True, **options)
    return ModelCard.load(output / "README.md")


def row(card: ModelCard, name: str) -> list[str]:
    """The cells after `name` in the table row that begins with it."""
    (line,) = [line for line in card.text.splitlines() if line.startswith(f"| {name} |")]
    return [cell.strip() for cell in line.split("|")[2:-1]]


def section(card: ModelCard, title: str) -> str:
    return card.text.partition(f"## {title}\n")[2].partition("\n## ")[0].strip()


def test_front_matter(base: Path, tmp_path: Path) -> None:
    assert exported(trained(tmp_path, base)).data.to_dict() == {
        "library_name": "transformers",
        "license": "apache-2.0",
        "datasets": ["argilla/pairs"],
        "pipeline_tag": "text-generation",
        "tags": ["dpo", "minordpo", "nemo-minordpo"],
    }


def test_model_and_pairs(base: Path, tmp_path: Path) -> None:
    card = exported(trained(tmp_path, base))
    assert card.text.strip().startswith("# mine\n")
    assert section(card, "Model").splitlines() == [
        "- Exported from `mine/model.nemo`",
        f"- Base model: `{tmp_path.name}/base.nemo` (sha256 `{sha256_of_file(base)}`), imported from "
        f"`{tmp_path.name}/hf`",
        "- Licence of the base model: apache-2.0",
    ]
    train, validation = (sha256_of_file(tmp_path / f"pairs/{name}.jsonl") for name in ("train", "validation"))
    assert section(card, "Pairs").splitlines() == [
        "Train (182 pairs; 2 left out: longer than model.data.seq_length):", "",
        f"- `pairs/train.jsonl` (sha256 `{train}`)", "",
        "Validation (16 pairs):", "",
        f"- `pairs/validation.jsonl` (sha256 `{validation}`)", "",
        "Made by `minordpo prepare hf` from:", "",
        "- `argilla/pairs` (sha256 `d1`)",
        "- `private/extra.jsonl` (sha256 `d2`)", "",
        "| count or setting | value |",
        "| --- | --- |",
        "| rows | 1,234 |",
        "| pairs | 200 |",
        "| template | `chat` |",
        "| system | `` Be brief \\| be `plain`. `` |",
        "| tokenizer | `private/hf` |",
        "| num_validation | `0` |",
    ]  # fmt: skip
    assert str(tmp_path.parent) not in card.content


def test_settings(base: Path, tmp_path: Path) -> None:
    assert section(exported(trained(tmp_path, base)), "Training").splitlines()[2:] == [
        "| loss | `minordpo` |",
        "| steps | `4` |",
        "| beta | `0.1` |",
        "| learning rate | `1e-05` |",
        "| schedule | `linear` |",
        "| optimizer | `adamw` |",
        "| pairs per step | `8` |",
        "| seed | `1234` |",
        "| precision | `32-true` |",
        "| model.data.seq_length | `512` |",
    ]


def test_metrics_of_the_last_step_and_the_last_validation(base: Path, tmp_path: Path) -> None:
    run = trained(tmp_path, base, values={"rewards/chosen": -1.5, "logps/chosen": -20.25})
    card = exported(run)
    assert row(card, "metric") == ["last training step, after step 4", "last validation, after step 4"]
    assert row(card, "`loss`, nats") == ["0.25", "0.5"]
    assert row(card, "`rewards/chosen`, nats") == ["-1.5", "-1.5"]
    assert "step_s" not in card.text


def test_a_checkpoint_has_the_metrics_of_its_step(base: Path, tmp_path: Path) -> None:
    card = exported(trained(tmp_path, base) / "checkpoints/step_000002")
    assert row(card, "metric") == ["last training step, after step 2", "last validation, after step 2"]
    assert row(card, "`loss`, nats") == ["0.5", "1"]
    assert row(card, "steps") == ["`2`"]


def test_without_validation(base: Path, tmp_path: Path) -> None:
    card = exported(trained(tmp_path, base, validation=False))
    assert "There were no validation pairs." in section(card, "Pairs")
    assert row(card, "metric") == ["last training step, after step 4"]
    assert row(card, "`loss`, nats") == ["0.25"]
    assert "there was no validation" in section(card, "Metrics")


def test_half_a_line_of_metrics_is_left_out_with_a_note(base: Path, tmp_path: Path, capsys: Any) -> None:
    run = trained(tmp_path, base)
    with (run / "metrics.jsonl").open("a") as out:
        out.write('{"split": "train", "st')
    assert row(exported(run), "`loss`, nats") == ["0.25", "0.5"]
    assert "metrics.jsonl:7: not a line of metrics" in capsys.readouterr().err


def test_a_mix_and_settings_that_its_losses_read(base: Path, tmp_path: Path) -> None:
    mix = "model.dpo.preference_loss={minordpo: 1.0, hinge: 0.5}"
    card = exported(trained(tmp_path, base, mix, "model.dpo.sft_loss_weight=0.1", "model.dpo.minordpo_floor=-2"))
    assert card.data.tags == ["dpo", "minordpo", "hinge", "sft", "nemo-minordpo"]
    assert row(card, "loss") == ["`minordpo + 0.5 hinge + 0.1 sft`"]
    assert row(card, "model.dpo.minordpo_floor") == ["`-2.0`"]
    # a setting that only another loss reads says nothing
    other = exported(trained(tmp_path / "2", base, "model.dpo.preference_loss=ipo", "model.dpo.minordpo_floor=-2"))
    assert "minordpo_floor" not in other.text


def test_without_a_reference_there_are_no_log_ratios(base: Path, tmp_path: Path) -> None:
    equal = {"rewards/chosen": -20.25, "logps/chosen": -20.25}
    card = exported(trained(tmp_path, base, "model.dpo.preference_loss=simpo", values=equal))
    assert row(card, "`logps/chosen`, nats") == ["-20.25", "-20.25"]
    assert "| `rewards/chosen`" not in card.text


def test_the_card_tells_what_training_read_not_what_is_there_now(base: Path, tmp_path: Path) -> None:
    run = trained(tmp_path, base)
    Manifest(stage="prepare gsm8k", counts={"rows": 9}).write(tmp_path / "pairs")
    import_hf(write_hf(tmp_path / "another", "qwen2"), base, overwrite=True)
    text = exported(run).text
    assert "`minordpo prepare hf`" in text
    assert "1,234" in text
    assert "prepare gsm8k" not in text
    assert f"imported from `{tmp_path.name}/hf`" in text


def test_without_a_run_the_card_says_what_is_not_known(hf: Path, tmp_path: Path) -> None:
    (tmp_path / "models/deep").mkdir(parents=True)
    base = tmp_path / "models/deep/base.nemo"
    import_hf(hf, base)
    card = exported(base)
    assert card.data.to_dict() == {
        "library_name": "transformers",
        "license": "apache-2.0",
        "pipeline_tag": "text-generation",
        "tags": ["nemo-minordpo"],
    }
    assert "no record of a training run" in card.text
    assert section(card, "Model").splitlines()[:2] == [
        f"- Exported from `deep/base.nemo`, imported from `{tmp_path.name}/hf`",
        "- Base model: not known",
    ]
    assert [section(card, title) for title in ("Pairs", "Training", "Metrics")] == ["Not known."] * 3


def test_a_run_from_before_manifests_listed_roles(base: Path, tmp_path: Path) -> None:
    run = trained(tmp_path, base)
    manifest = json.loads((run / "manifest.json").read_text())
    write_json(run / "manifest.json", {key: manifest[key] for key in manifest if key not in ("roles", "origins")})
    card = exported(run)
    assert section(card, "Pairs") == "The run's manifest does not list its files of pairs."
    assert row(card, "beta") == ["`0.1`"]


def test_the_base_models_card_is_not_the_trained_models(base: Path, tmp_path: Path) -> None:
    assert (tmp_path / "base.tokenizer/README.md").read_text() == BASE_CARD
    for source in (trained(tmp_path, base), base):
        export_hf(source, tmp_path / "out", overwrite=True)
        text = (tmp_path / "out/README.md").read_text()
        assert "99 %" not in text
        assert "vllm" not in text


def test_the_base_models_name_on_the_hub(tmp_path: Path) -> None:
    cached = tmp_path / "hub/models--Qwen--Qwen2.5-0.5B/snapshots/7ae557604adf67be50417f59c2c2f167def9a775"
    cached.parent.mkdir(parents=True)
    write_hf(cached, "qwen2")
    import_hf(cached, tmp_path / "base.nemo")
    run = trained(tmp_path, tmp_path / "base.nemo")
    assert exported(run).data.base_model == "Qwen/Qwen2.5-0.5B"
    card = exported(run, base_name="me/other")
    assert card.data.base_model == "me/other"
    assert "Base model: me/other, " in card.text
    assert "Licence of the base model: unknown, see the base model" in card.text
    assert card.data.license is None


def test_a_second_round_inherits_the_licence(base: Path, tmp_path: Path) -> None:
    """The first round's export is imported as it is; the card of the first is not the second's."""
    run = trained(tmp_path, base, "model.dpo.preference_loss=dpop")
    export_hf(run, tmp_path / "first")
    import_hf(tmp_path / "first", tmp_path / "second/base.nemo")
    card = exported(trained(tmp_path / "second", tmp_path / "second/base.nemo"))
    assert card.data.license == "apache-2.0"
    assert card.data.tags == ["dpo", "minordpo", "nemo-minordpo"]
    # started from the run's model.nemo instead
    shutil.copytree(run / "model.tokenizer", run / "base.tokenizer")
    third = exported(trained(tmp_path / "third", run / "model.nemo"))
    assert "`mine/model.nemo` (sha256 " in third.text
    assert "trained in another run with the loss `dpop`" in third.text


def test_the_folder_is_read_as_before(hf: Path, base: Path, tmp_path: Path) -> None:
    export_hf(trained(tmp_path, base), tmp_path / "out")
    assert load_tokenizer(tmp_path / "out").eos_token == "</s>"
    import_hf(tmp_path / "out", tmp_path / "again.nemo")
    original, again = read_all(hf), read_all(tmp_path / "out")
    assert original.keys() == again.keys()
    assert all(original[name].equal(again[name]) for name in original)


@pytest.mark.parametrize("peft", [False, True])
def test_adapters(base: Path, tmp_path: Path, peft: bool) -> None:
    (tmp_path / "base.tokenizer/LICENSE").write_text("Terms of Use\n")
    run = write_run(tmp_path / "run", base, stacked(random_adapters()))
    export = export_peft if peft else export_hf
    export(run, tmp_path / "out", base_name="me/base")
    card = ModelCard.load(tmp_path / "out/README.md")
    assert card.data.library_name == ("peft" if peft else "transformers")
    assert card.data.base_model == "me/base"
    assert f"- LoRA: rank {RANK}, alpha 5, dropout 0.1, on self_attention.linear_qkv, " in card.text
    assert ("this folder has only the adapters" in card.text) is peft
    assert (tmp_path / "out/LICENSE").read_text() == "Terms of Use\n"
    if peft:
        settings = json.loads((tmp_path / "out/adapter_config.json").read_text())
        assert settings["base_model_name_or_path"] == "me/base"


LLAMA = {"license": "other", "license_name": "llama4", "license_link": "https://example.com/LICENSE"}
APACHE = "\n                                 Apache License\n                           Version 2.0, January 2004\n"


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({}, {}),
        ({"README.md": "---\nlicense: mit\n---\n", "LICENSE": APACHE}, {"license": "mit"}),
        ({"README.md": f"---\n{json.dumps(LLAMA | {'tags': ['x']})}\n---\n"}, LLAMA),
        ({"README.md": "# No front matter\n", "LICENSE": APACHE}, {"license": "apache-2.0"}),
        ({"README.md": "---\nlanguage: en\n---\n", "LICENSE.md": "MIT License\n\nCopyright"}, {"license": "mit"}),
        ({"LICENSE.txt": "GEMMA TERMS"}, {"license": "other", "license_link": "LICENSE.txt"}),
        ({"README.md": "---\nlicense: [\n---\n", "LICENSE": APACHE}, {"license": "apache-2.0"}),
        ({"README.md": "---\n- mit\n---\n"}, {}),
    ],
)
def test_licence(tmp_path: Path, files: dict[str, str], found: dict[str, Any]) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert license_of(tmp_path) == found
