"""LoRA adapters: merged as peft merges them, and everything else refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapters import make_adapter, merged_plan
from checkpoints import VARIATIONS, edit_json, make_checkpoint, write_json
from conftest import run_module
from exporting import Silent, export, failures
from raising import refused
from safetensors.numpy import load_file, save_file

from divprune_edge.errors import UserError
from divprune_edge.export.adapter import open_adapter, refuse_adapter_alone
from divprune_edge.export.bundle import export_bundle
from divprune_edge.export.checkpoint import Checkpoint
from divprune_edge.export.hub import open_checkpoint
from divprune_edge.export.merged import MergedCheckpoint, with_adapter
from divprune_edge.export.planning import plan_export
from divprune_edge.export.verify import available
from divprune_edge.manifest import Verification, read_manifest
from divprune_edge.models.demo import IMAGE
from divprune_edge.models.families.llava.family import LLAVA

pytest.importorskip("peft")

EVERYWHERE = r".*(language_model.*(q_proj|down_proj)|vision_tower.*v_proj|multi_modal_projector.linear_2)"

LORAS: dict[str, dict[str, Any]] = {
    "attention": {"target_modules": ["q_proj", "v_proj"]},
    "every part": {"target_modules": EVERYWHERE, "r": 3, "lora_alpha": 7},
    "rank-stabilised": {"target_modules": EVERYWHERE, "use_rslora": True},
    "patterns": {
        "target_modules": ["q_proj", "k_proj", "fc1"],
        "rank_pattern": {"k_proj": 2, r"layers.1.self_attn.q_proj": 6},
        "alpha_pattern": {"q_proj": 32, r"^model.vision_tower.*fc1": 5},
    },
    "fan in, fan out": {"target_modules": ["down_proj"], "fan_in_fan_out": True},
    "whole modules": {"target_modules": ["q_proj"], "modules_to_save": ["multi_modal_projector", "lm_head"]},
    "embedding and head": {"target_modules": ["embed_tokens", "lm_head"]},
    "biases": {"target_modules": ["fc1", "out_proj"], "bias": "all"},
}


@pytest.mark.parametrize("kind", LORAS)
def test_weights_are_those_of_peft(kind: str, checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    folder, wanted = make_adapter(checkpoint("plain"), tmp_path / "adapter", **LORAS[kind])
    with with_adapter(Checkpoint(checkpoint("plain"), "tiny"), folder) as merged:
        assert isinstance(merged, MergedCheckpoint)
        assert merged.touched
        changed = 0
        with Checkpoint(checkpoint("plain"), "tiny") as base:
            for name in merged.tensors:
                found, own = merged.read(name), wanted[name]
                assert np.abs(found - own).max() <= 2e-6 * max(1, np.abs(own).max()), name
                assert (name in merged.touched) == (not np.array_equal(base.read(name), found)), name
                changed += name in merged.touched
    assert changed == len(merged.touched)


@pytest.mark.parametrize("kind", ["every part", "patterns", "whole modules", "embedding and head", "biases"])
def test_the_bundle_is_verified_against_peft(
    kind: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder, _ = make_adapter(checkpoint("plain"), tmp_path / "adapter", **LORAS[kind])
    made = export(merged_plan(checkpoint("plain"), folder), tmp_path / "bundle")
    assert failures(made.plan, made.folder) == set()
    recorded = made.manifest.source.adapter
    assert recorded is not None
    assert (recorded.name, recorded.base) == ("adapter", str(checkpoint("plain")))
    assert "--adapter PATH/adapter" in made.manifest.source.export_command


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_other_precisions_are_verified_too(precision: str, tmp_path: Path) -> None:
    base = make_checkpoint(tmp_path / "tiny", dtype="float16")
    folder, _ = make_adapter(base, tmp_path / "adapter", **LORAS["every part"])
    made = export(merged_plan(base, folder, precision=precision), tmp_path / "bundle")
    assert failures(made.plan, made.folder) == set()


@pytest.mark.parametrize("spelling", ["names of the first conversions", "names of transformers 4.52"])
def test_names_of_every_transformers_belong_together(
    spelling: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    """The adapter of one spelling and the checkpoint of another: both ways."""
    plain, other = checkpoint("plain"), make_checkpoint(tmp_path / "other", **VARIATIONS[spelling])
    folder, _ = make_adapter(plain, tmp_path / "adapter", **LORAS["patterns"])
    made = export(merged_plan(other, folder), tmp_path / "one")
    assert failures(made.plan, made.folder) == set()
    renamed = shutil.copytree(folder, tmp_path / "renamed")
    weights = load_file(renamed / "adapter_model.safetensors")
    for new, old in (
        ("model.vision_tower.", "vision_tower.vision_model."),
        ("model.language_model.", "language_model.model."),
    ):
        weights = {
            key.replace(f"base_model.model.{new}", f"base_model.model.{old}"): value
            for key, value in weights.items()
        }
    save_file(weights, renamed / "adapter_model.safetensors")
    edit_json(
        renamed / "adapter_config.json",
        lambda data: data["alpha_pattern"].update(
            {r"^vision_tower.*fc1": data["alpha_pattern"].pop(r"^model.vision_tower.*fc1")}
        ),
    )
    again = export(merged_plan(other, renamed), tmp_path / "two")
    assert failures(again.plan, again.folder) == set()
    files = [{name: info.sha256 for name, info in bundle.manifest.files.items()} for bundle in (made, again)]
    assert files[0] == files[1]


def test_a_truncated_copy_is_verified_where_memory_is_short(tmp_path: Path) -> None:
    base = make_checkpoint(tmp_path / "tiny", text={"num_hidden_layers": 6})
    folder, _ = make_adapter(base, tmp_path / "adapter", **LORAS["attention"])
    made = export(merged_plan(base, folder), tmp_path / "bundle")
    assert failures(made.plan, made.folder, layers=4) == set()


def test_a_merge_that_is_wrong_is_found(
    checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = make_adapter(checkpoint("plain"), tmp_path / "adapter", **LORAS["attention"])
    monkeypatch.setattr("divprune_edge.export.adapter._scale", lambda *given: 4.01)  # 16 / 4 would be right
    made = export(merged_plan(checkpoint("plain"), folder), tmp_path / "bundle")
    assert "weights: changed" in failures(made.plan, made.folder)


def test_memory_holds_a_few_matrices(tmp_path: Path) -> None:
    """The merge of a matrix adds no second matrix to the memory it takes: B·A is made in pieces."""
    import tracemalloc

    base = make_checkpoint(tmp_path / "tiny", text={"intermediate_size": 16384, "num_hidden_layers": 2})
    folder, _ = make_adapter(base, tmp_path / "adapter", target_modules=["up_proj"])
    with with_adapter(Checkpoint(base, "tiny"), folder) as merged:
        name = "model.language_model.layers.1.mlp.up_proj.weight"
        size = int(np.prod(merged.tensors[name].shape)) * 4
        tracemalloc.start()
        merged.read(name)
        assert tracemalloc.get_traced_memory()[1] < 2.5 * size
        tracemalloc.stop()


@pytest.fixture
def attention(checkpoint: Callable[[str], Path], tmp_path: Path) -> Path:
    return make_adapter(checkpoint("plain"), tmp_path / "adapter", **LORAS["attention"])[0]


def refusal(checkpoint: Path, adapter: Path) -> UserError:
    with pytest.raises(UserError) as error:
        with_adapter(Checkpoint(checkpoint, "tiny"), adapter)
    assert "\n" not in str(error.value)
    return error.value


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"use_dora": True}, "uses DoRA (use_dora)"),
        ({"use_qalora": True}, "uses QALoRA (use_qalora)"),
        ({"peft_type": "IA3"}, "is of type 'IA3', only LORA"),
        ({"peft_type": None}, "is of type None, only LORA"),
        ({"init_lora_weights": "pissa_niter_4"}, "begun with init_lora_weights 'pissa_niter_4'"),
        ({"trainable_token_indices": [1, 2]}, "uses trainable_token_indices"),
        ({"target_parameters": ["experts"]}, "uses target_parameters"),
        ({"layer_replication": [[0, 2]]}, "uses layer_replication"),
        ({"something_of_2027": True}, "uses something_of_2027"),
    ],
)
def test_other_kinds_are_refused_by_name(
    change: dict[str, Any], sentence: str, attention: Path, checkpoint: Callable[[str], Path]
) -> None:
    edit_json(attention / "adapter_config.json", lambda data: data.update(change))
    error = refusal(checkpoint("plain"), attention)
    assert sentence in str(error)
    assert "merge_and_unload" in str(error)
    assert error.code == "adapter-not-supported"


LAYER = "base_model.model.model.language_model.layers.0.self_attn.q_proj"
STRANGE: dict[str, tuple[dict[str, tuple[int, ...]], str, str]] = {
    "one of two": (
        {f"{LAYER[:-6]}o_proj.lora_A.weight": (4, 40)},
        "adapter-damaged",
        "only one matrix of two",
    ),
    "too deep": (
        {
            f"{LAYER.replace('.0.', '.77.')}.lora_A.weight": (4, 40),
            f"{LAYER.replace('.0.', '.77.')}.lora_B.weight": (40, 4),
        },
        "adapter-does-not-fit",
        "has no weight",
    ),
    "another family": (
        {"base_model.model.classifier.weight": (3,)},
        "adapter-does-not-fit",
        "no weight of such a model",
    ),
    "more words": (
        {"base_model.model.lm_head.weight": (80, 40)},
        "adapter-does-not-fit",
        "vocabulary was enlarged",
    ),
    "magnitudes": (
        {f"{LAYER}.lora_magnitude_vector": (40,)},
        "adapter-not-supported",
        "lora_magnitude_vector",
    ),
}


@pytest.mark.parametrize("kind", STRANGE)
def test_weights_that_do_not_fit_are_named(
    kind: str, attention: Path, checkpoint: Callable[[str], Path]
) -> None:
    shapes, code, sentence = STRANGE[kind]
    weights = load_file(attention / "adapter_model.safetensors")
    weights |= {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    save_file(weights, attention / "adapter_model.safetensors")
    error = refusal(checkpoint("plain"), attention)
    assert sentence in str(error)
    assert error.code == code


def test_rank_and_values_are_checked(attention: Path, checkpoint: Callable[[str], Path]) -> None:
    edit_json(attention / "adapter_config.json", lambda data: data.update(r=5))
    with refused("adapter-does-not-fit", f"'{attention}'", "rank 5"):
        with_adapter(Checkpoint(checkpoint("plain"), "tiny"), attention)
    edit_json(attention / "adapter_config.json", lambda data: data.update(r=4))
    weights = load_file(attention / "adapter_model.safetensors")
    key = next(iter(weights))
    weights[key] = np.full_like(weights[key], np.nan)
    save_file(weights, attention / "adapter_model.safetensors")
    with (
        with_adapter(Checkpoint(checkpoint("plain"), "tiny"), attention) as merged,
        refused("adapter-not-finite", attention, f"'{key}'"),
    ):
        for name in merged.touched:
            merged.read(name)


def test_a_tied_head_is_refused(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    folder, _ = make_adapter(checkpoint("tied embeddings"), tmp_path / "adapter", target_modules=["lm_head"])
    with refused("adapter-on-tied-head", folder):
        with_adapter(Checkpoint(checkpoint("tied embeddings"), "tiny"), folder)


def test_pickles_and_other_folders_are_no_adapters(
    attention: Path, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    def merge(folder: Path = attention) -> None:
        with_adapter(Checkpoint(checkpoint("plain"), "tiny"), folder)

    weights = attention / "adapter_model.safetensors"
    weights.rename(attention / "adapter_model.bin")
    with refused("adapter-without-weights", f"'{attention}'", "adapter_model.bin", weights.name):
        merge()
    (attention / "adapter_model.bin").rename(tmp_path / "elsewhere")
    with refused("adapter-without-weights", f"'{attention}'", weights.name):
        merge()
    weights.write_bytes(b"no")
    with refused("adapter-damaged", f"'{weights}'"):
        merge()
    with refused("adapter-missing", tmp_path / "nothing", "adapter_config.json"):
        merge(tmp_path / "nothing")
    save_file({}, weights)
    with refused("adapter-damaged", f"'{attention}'"):
        merge()


def test_an_adapter_alone_says_what_it_is(attention: Path) -> None:
    with refused("adapter-without-base", f"'{attention}'", "LORA", f"--adapter {attention}"):
        open_checkpoint(str(attention))
    write_json(attention / "config.json", {"model_type": "llava"})  # some trainers write it along
    with refused("adapter-without-base", "'MODEL'", "--adapter MODEL"):
        refuse_adapter_alone(attention, "MODEL")


def test_one_beside_whole_weights_needs_a_word(
    attention: Path, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    both = shutil.copytree(checkpoint("plain"), tmp_path / "both")
    for file in attention.glob("adapter_*"):
        shutil.copy(file, both)
    with refused("adapter-beside-weights", f"'{both}'", f"--adapter {both}", "--no-adapter"):
        with_adapter(Checkpoint(both, "both"), None)
    with refused("options-exclusive", "--adapter", "--no-adapter"):
        with_adapter(Checkpoint(both, "both"), both, ignore=True)
    ignored = with_adapter(Checkpoint(both, "both"), None, ignore=True)
    assert ignored.adapter_source is None
    asked = {"selector": "divprune", "keep": 9, "prune": None, "precision": "fp32"}
    made = export(plan_export(ignored, **asked), tmp_path / "base")  # type: ignore[arg-type]
    assert failures(made.plan, made.folder) == set()
    merged = export(merged_plan(both, both), tmp_path / "merged")
    assert failures(merged.plan, merged.folder) == set()


def test_the_command_line(attention: Path, checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    options = ["--keep", "9", "--output", str(tmp_path / "bundle")]
    done = run_module(
        "export", "llava", "--model", str(checkpoint("plain")), "--adapter", str(attention), *options
    )
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "bundle/manifest.json").read_text())
    assert manifest["verification"]["status"] == "verified"
    assert manifest["source"]["adapter"]["name"] == "adapter"
    alone = run_module("export", "llava", "--model", str(attention), *options, "--force")
    assert alone.returncode == 2
    assert alone.stderr.startswith("error[adapter-without-base]: ")


def test_without_peft_it_is_not_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "divprune_edge.export.verify.find_spec", lambda name: None if name == "peft" else object()
    )
    assert available() is None
    assert available(adapter=True) == "peft is not installed"


def test_an_export_reads_the_merge(
    attention: Path, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    """The adapter's matrices are read when their weight's turn comes, and never the base alone."""
    plan = merged_plan(checkpoint("plain"), attention)
    manifest = export_bundle(
        plan,
        tmp_path / "bundle",
        force=False,
        verify=lambda plan, folder: Verification(status="not verified"),
        report=Silent(),
    )
    assert manifest.source.adapter == open_adapter(attention, LLAVA).source()


def test_a_schedule_that_was_fitted_with_it_is_exported_with_it(
    attention: Path, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    """So the command says that `fit` ends with."""
    asked = (
        "--adapter",
        str(attention),
        "--images",
        str(IMAGE.parent),
        "--output",
        str(tmp_path / "fit.json"),
    )
    told = run_module(
        "export", "fit", str(checkpoint("plain")), *asked, "--target-flops", "0.8", "--cuts", "1"
    )
    assert told.returncode == 0, told.stderr
    command = told.stdout.splitlines()[-1].partition("-m ")[2].split()
    exported = run_module(*command, "--output", str(tmp_path / "bundle"), "--no-verify")
    assert exported.returncode == 0, exported.stderr
    assert read_manifest(tmp_path / "bundle").source.adapter == open_adapter(attention, LLAVA).source()
