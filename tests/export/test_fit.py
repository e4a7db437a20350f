"""``python -m export fit``: what is measured against PyTorch; what is interrupted goes on; what is refused."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import run_module
from eager_schedules import run_layer, tiny_decoder
from exporting import Language, Silent, export, plan_of
from images_made import noise_image
from raising import assert_told, refused

from divprune_edge.export import fit as fitting
from divprune_edge.export import numpy_decoder
from divprune_edge.export.again import arguments_of, as_options, of_measurement
from divprune_edge.export.fit import FitRequest, _Look, fit_schedule, read_request, schedule_json
from divprune_edge.export.numpy_decoder import _ACTIVATIONS, LayerWeights, read_layer
from divprune_edge.export.planning import plan_export
from divprune_edge.manifest import read_manifest
from divprune_edge.models.cost import visual_by_layer
from divprune_edge.models.decoder import read_decoder
from divprune_edge.models.schedules import Cut, Schedule, schedule_of


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for i in range(4):
        noise_image(40, 50, i).save(folder / f"{i}.png")
    return folder


def request(photos: Path, target: float = 0.6, cuts: int = 2) -> FitRequest:
    return read_request(photos, None, target, cuts)


# Layers.


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_a_layer_and_what_is_read_of_its_attention(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In blocks of 13 queries; visual rows 3 to 82 of 96."""
    monkeypatch.setattr(numpy_decoder, "_SHARES", 13 * 4 * 96)
    model = tiny_decoder(kind, layers=2)
    spec = read_decoder(model.config.to_dict())
    torch.manual_seed(4)
    x, positions = torch.randn(96, 32), torch.arange(96) + 7
    visual, text = np.arange(3, 83), np.r_[0:3, 83:96]
    for index in range(2):
        weights = {
            name: value.detach().numpy() for name, value in model.model.layers[index].named_parameters()
        }
        look = _Look(visual, text)
        found = LayerWeights(spec, index, weights).run(x.numpy(), positions.numpy(), look)
        with torch.no_grad():
            wanted = run_layer(model.model, model.model.layers[index], x, positions)
        strongest = wanted.probabilities.max(0).values.numpy()
        np.testing.assert_allclose(found, wanted.after.numpy(), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(look.itself, strongest[3:83, 3:83].mean(0), rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(look.cross, strongest[83:, 3:83].sum(0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "name",
    ["grouped queries", "attention and mlp bias", "qwen2, sliding window in some layers", "llama3 rope"],
)
def test_layers_are_those_of_the_graph(name: str, bundle: Callable[..., Any]) -> None:
    """All layers in turn give the logits of the exported language model."""
    made = bundle(name)
    plan = made.plan
    random = np.random.default_rng(2)
    ids = random.integers(5, plan.embedding_rows, 40)
    wanted, _ = Language(made).step(
        [ids], np.zeros((1, 1, plan.spec.width), np.float32), Language(made).empty()
    )
    prefix, spec = plan.names.decoder, plan.spec.decoder
    x = plan.checkpoint.read(f"{prefix}embed_tokens.weight")[ids].astype(np.float32)
    for index in range(spec.layers):
        x = read_layer(plan.checkpoint, prefix, spec, index).run(x, np.arange(40), lambda first, shares: None)
    last = x[-1] / np.sqrt(np.mean(x[-1] ** 2) + spec.norm_eps) * plan.checkpoint.read(f"{prefix}norm.weight")
    np.testing.assert_allclose(plan.checkpoint.read(plan.names.head) @ last, wanted[0], rtol=1e-3, atol=1e-4)


def test_three_positions_a_token(checkpoint: Callable[[str], Path]) -> None:
    """M-RoPE, norms of heads and features behind the first layers: Qwen3-VL's fit is that of its own graph."""
    from qwen_checkpoints import QWEN_VARIATIONS

    name = next(name for name in QWEN_VARIATIONS if "3" in name)
    plan = plan_of(checkpoint(name))
    spec = plan.spec.decoder
    assert spec.rope.axes == 3
    layer = read_layer(plan.checkpoint, plan.names.decoder, spec, 0)
    x = np.random.default_rng(0).normal(size=(12, spec.hidden)).astype(np.float32)
    same = layer.run(x, np.tile(np.arange(12), (3, 1)), lambda first, shares: None)
    one = LayerWeights(replace(spec, rope=replace(spec.rope, sections=())), 0, layer.weights)
    np.testing.assert_allclose(
        same, one.run(x, np.arange(12), lambda first, shares: None), rtol=1e-5, atol=1e-6
    )
    places = np.stack([np.zeros(12), np.arange(12) // 4, np.arange(12) % 4]).astype(np.int64)
    assert np.abs(layer.run(x, places, lambda first, shares: None) - same).max() > 1e-3


@pytest.mark.parametrize("name", _ACTIVATIONS)
def test_activations(name: str) -> None:
    from transformers.activations import ACT2FN

    x = np.linspace(-6, 6, 101, dtype=np.float32)
    known = {"gelu_tanh": "gelu_pytorch_tanh"}.get(name, name)
    np.testing.assert_allclose(_ACTIVATIONS[name](x), ACT2FN[known](torch.from_numpy(x)).numpy(), atol=3e-6)


# The whole.


def test_the_schedule_meets_the_budget_and_exports(
    checkpoint: Callable[[str], Path], photos: Path, tmp_path: Path
) -> None:
    plan, file = plan_of(checkpoint("plain"), keep=25), tmp_path / "fit.json"
    found = fit_schedule(plan, request(photos), file, Silent())
    assert found.share <= 0.6
    assert json.loads(file.read_text())["visual_tokens"] == 25
    read = schedule_of(str(file), plan.spec.decoder.layers, 25)
    assert read == found.schedule
    assert visual_by_layer(read, 3)[0] == 25
    assert list(tmp_path.iterdir()) == [file], "nothing of the measurement is left"
    other = plan_export(
        plan.checkpoint, selector="divprune", keep=25, prune=None, precision="fp32", schedule=str(file)
    )
    assert other.schedule == read


def test_features_behind_the_first_layers_keep_their_tokens(
    checkpoint: Callable[[str], Path], photos: Path, tmp_path: Path
) -> None:
    """Qwen3-VL: nothing leaves before the layers that the tower's features are added behind."""
    from qwen_checkpoints import QWEN_VARIATIONS

    plan = plan_of(checkpoint(next(name for name in QWEN_VARIATIONS if "3" in name)))
    assert plan.spec.stacked
    found = fit_schedule(plan, request(photos, 0.95), tmp_path / "fit.json", Silent())
    assert found.schedule.cuts[0].before >= plan.spec.stacked


def test_what_was_interrupted_goes_on(
    checkpoint: Callable[[str], Path], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, whole, file = plan_of(checkpoint("plain"), keep=25), tmp_path / "whole.json", tmp_path / "fit.json"
    fit_schedule(plan, request(photos), whole, Silent())
    read: list[int] = []

    def until(last: int) -> Callable[..., LayerWeights]:
        def reading(checkpoint: Any, prefix: str, spec: Any, index: int) -> LayerWeights:
            if index == last:
                raise KeyboardInterrupt
            read.append(index)
            return read_layer(checkpoint, prefix, spec, index)

        return reading

    monkeypatch.setattr(fitting, "read_layer", until(2))
    with pytest.raises(KeyboardInterrupt):
        fit_schedule(plan, request(photos), file, Silent())
    assert not file.exists()
    monkeypatch.setattr(fitting, "read_layer", until(-1))
    # Another target is a matter of arithmetic: nothing is measured again for it.
    found = fit_schedule(plan, request(photos, 0.7), file, Silent())
    assert read == [0, 1, 2]
    assert found.share > 0.6
    fit_schedule(plan, request(photos), file, Silent())
    assert file.read_text() == whole.read_text()


def test_another_measurement_begins_anew(
    checkpoint: Callable[[str], Path], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, file = plan_of(checkpoint("plain"), keep=25), tmp_path / "fit.json"
    asked = request(photos)
    for change, same in ((asked, True), (replace(asked, questions=("What?",)), False)):
        monkeypatch.setattr(fitting, "fit", lambda *asked: _interrupt())
        with pytest.raises(KeyboardInterrupt):
            fit_schedule(plan, asked, file, Silent())
        monkeypatch.undo()
        read: list[int] = []
        monkeypatch.setattr(
            fitting, "read_layer", lambda c, p, s, i, read=read: read.append(i) or read_layer(c, p, s, i)
        )
        fit_schedule(plan, change, file, Silent())
        assert read == ([] if same else [0, 1, 2])


def _interrupt() -> None:
    raise KeyboardInterrupt


def test_what_is_asked_for_is_checked(photos: Path, tmp_path: Path) -> None:
    for target in (0.0, 1.0, -1.0, float("nan")):
        with refused("target-flops-out-of-range", target):
            read_request(photos, None, target, 4)
    with refused("count-out-of-range", "--cuts", 0):
        read_request(photos, None, 0.5, 0)
    with refused("fit-images-missing", tmp_path):
        read_request(tmp_path, None, 0.5, 4)
    with refused("questions-unreadable", "asked.txt"):
        read_request(photos, tmp_path / "asked.txt", 0.5, 4)
    asked = tmp_path / "asked.txt"
    asked.write_text("\n \n")
    with refused("questions-missing", "asked.txt"):
        read_request(photos, asked, 0.5, 4)
    asked.write_text("What is it?\n\n  Where? \n")
    assert read_request(photos, asked, 0.5, 4).questions == ("What is it?", "Where?")


def test_an_image_that_is_none(checkpoint: Callable[[str], Path], photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "broken.png").write_bytes(b"no image")
    with refused("image-format-unknown", "broken.png", "TIFF"):
        fit_schedule(plan_of(checkpoint("plain")), request(folder), tmp_path / "fit.json", Silent())


def test_its_file_says_what_schedule_reads() -> None:
    schedule = Schedule("fitprune", 58, (Cut(2, 30), Cut(5, 0)), "original")
    assert json.loads(schedule_json(schedule)) == {
        "method": "fitprune",
        "visual_tokens": 58,
        "numbering": "original",
        "cuts": [{"before": 2, "keep": 30}, {"before": 5, "keep": 0}],
    }


# As a user types it.


def test_the_command(demo_bundle: Path, photos: Path, tmp_path: Path) -> None:
    """A bundle's own selector prunes first."""
    file = tmp_path / "demo.json"
    asked = [
        "export",
        "fit",
        str(demo_bundle),
        "--images",
        str(photos),
        "--target-flops",
        "0.5",
        "--output",
        str(file),
    ]
    result = run_module(*asked)
    assert result.returncode == 0, result.stderr
    visual = json.loads(file.read_text())["visual_tokens"]
    assert f"of the operations on {visual} visual tokens" in result.stdout
    command = f"export llava --selector divprune --keep {visual} --schedule {file}"
    assert result.stdout.splitlines()[-1].endswith(command)
    again = run_module(*asked)
    assert_told(again.returncode, again.stderr, "output-exists", "demo.json", "--force")
    both = run_module(*asked, "--force", "--keep", "9")
    assert_told(both.returncode, both.stderr, "options-exclusive", "--keep")
    other = str(tmp_path / "other.json")
    beyond = run_module(*asked[:5], "--target-flops", "0.001", "--output", other)
    assert_told(beyond.returncode, beyond.stderr, "target-flops-unreachable", "0.001")
    assert f"--output {other} and another --target-flops" in beyond.stdout
    within = run_module(*asked[:5], "--target-flops", "0.5", "--output", other)
    assert (within.returncode, "visual tokens and prompts" in within.stdout) == (0, False), within.stderr
    suffix = run_module(*asked[:-1], str(tmp_path / "demo.txt"))
    assert_told(suffix.returncode, suffix.stderr, "output-suffix", "demo.txt")


def test_the_demo_is_fitted_where_no_checkpoint_is_given(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    shutil.copy(next(photos.iterdir()), tmp_path / "one")
    result = run_module("export", "fit", "--images", "one", "--target-flops", "0.4", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    first, *_ = result.stdout.splitlines()
    assert "bundled demo checkpoint" in first
    assert first.endswith("export fit llava-hf/llava-1.5-7b-hf --images one --target-flops 0.4")
    assert "from 1 image." in result.stdout
    assert json.loads((tmp_path / "demo-fitprune-0.4.json").read_text())["visual_tokens"] == 576


SETTINGS = [
    "--encoder-cut",
    "2:400",
    "--keep",
    "144",
    "--dialect",
    "static",
    "--precision",
    "vision=fp32,language=int4",
]
SETTINGS += [
    "--block-size",
    "64",
    "--capacity",
    "520",
    "--greedy",
    "--signals",
    "keys",
    "--target",
    "h100",
]


def test_the_printed_command_gives_the_bundle_again(photos: Path, tmp_path: Path) -> None:
    """What was measured is the bundle's own model, and the command has all that it was exported with."""
    first = run_module("export", "llava", *SETTINGS, "--no-verify", "--output", str(tmp_path / "bundle"))
    assert first.returncode == 0, first.stderr
    file = tmp_path / "fit.json"
    asked = ["export", "fit", str(tmp_path / "bundle"), "--images", str(photos), "--output", str(file)]
    exported = run_module(*asked, "--export", str(tmp_path / "exported"), cwd=tmp_path)
    assert exported.returncode == 0, exported.stderr
    assert "Export with it" not in exported.stdout
    printed = run_module(*asked, "--force", cwd=tmp_path)
    assert printed.returncode == 0, printed.stderr
    command = shlex.split(printed.stdout.splitlines()[-1].split(" -m ")[1])
    again = run_module(*command, "--no-verify", "--output", str(tmp_path / "printed"))
    assert again.returncode == 0, again.stderr
    before = read_manifest(tmp_path / "bundle")
    assert before.vision_encoder.cut == (2, 400)
    for name in ("exported", "printed"):
        after = read_manifest(tmp_path / name)
        assert arguments_of(after, name) == arguments_of(before, "bundle")
        assert after.vision_encoder == before.vision_encoder
        assert after.files["vision_encoder.onnx"] == before.files["vision_encoder.onnx"]
        assert after.language_model.schedule is not None
        assert after.language_model.schedule.method == "fitprune"
    there = run_module(*asked, "--force", "--export", str(tmp_path / "printed"))
    assert there.returncode == 0, there.stderr  # --force is for both
    (tmp_path / "fit.json").unlink()
    taken = run_module(*asked, "--export", str(tmp_path / "printed"))
    assert_told(taken.returncode, taken.stderr, "output-exists", "printed", "--force")
    assert not file.exists(), "nothing is measured for a bundle that cannot be written"


def test_a_cut_encoder_of_an_older_export(demo_bundle: Path) -> None:
    manifest = read_manifest(demo_bundle)
    vision = manifest.vision_encoder.model_copy(update={"uncut": 576})
    with refused("encoder-cut-unknown", "bundle", "--encoder-cut"):
        arguments_of(manifest.model_copy(update={"vision_encoder": vision}), "bundle")


def test_a_dialect_that_has_no_positions(demo_bundle: Path) -> None:
    """A fitted schedule leaves tokens where they were, unless it is told to renumber."""
    manifest = read_manifest(demo_bundle)
    assert arguments_of(manifest, "bundle")["numbering"] is None
    language = manifest.language_model.model_copy(update={"dialect": "onnxruntime"})
    other = arguments_of(manifest.model_copy(update={"language_model": language}), "bundle")
    assert "--positions compact" in as_options(other)


def test_options_say_no_more_than_is_needed(demo_bundle: Path) -> None:
    arguments = arguments_of(read_manifest(demo_bundle), "bundle")
    assert as_options(arguments) == "--selector divprune --keep 58"
    more = {"per": "tile", "numbering": "original", "greedy": True, "frames": 4, "resolution": "48x40,40x48"}
    assert as_options({"target": "h100", "dialect": "portable"}) == "--target h100 --dialect portable"
    options = "--per-tile --positions original --greedy --frames 4 --resolution 48x40,40x48"
    assert set(options.split()) <= set(as_options(arguments | more).split())


@pytest.mark.parametrize("options", [{"max_pixels": 40 * 64}, {"resolution": "48x40,40x48"}, {"frames": 2}])
def test_a_bundle_s_images_are_fitted_as_it_takes_them(
    options: dict[str, Any], checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    """What its own settings make of images of any size is what a plan by these makes of them."""
    from qwen_checkpoints import QWEN_VARIATIONS

    plan = plan_of(checkpoint(next(iter(QWEN_VARIATIONS))), **options)
    manifest = export(plan, tmp_path / "bundle").manifest
    arguments = arguments_of(manifest, "bundle")
    again = plan_of(plan.checkpoint.folder, **of_measurement(arguments))
    assert again.preprocessing.patches == plan.preprocessing.patches
    assert (again.visual_tokens, again.numbering, again.per) == (plan.visual_tokens, plan.numbering, plan.per)
    assert (arguments["selector"], arguments["keep"]) == ("divprune", plan.keep)


def test_a_bundle_of_a_folder_somewhere(
    checkpoint: Callable[[str], Path], photos: Path, tmp_path: Path
) -> None:
    export(plan_of(checkpoint("plain")), tmp_path / "bundle")
    result = run_module("export", "fit", str(tmp_path / "bundle"), "--images", str(photos))
    assert_told(result.returncode, result.stderr, "bundle-source-unknown", "tiny", "--keep")
