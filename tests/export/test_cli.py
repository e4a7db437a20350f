"""``python -m export`` as a user types it: what it prints, and one sentence for every mistake."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from checkpoints import edit_json
from conftest import run_module
from raising import assert_told

from divprune_edge.console import run
from divprune_edge.export.cli import app
from divprune_edge.manifest import read_manifest

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Run ``export`` in this process, in an empty folder; return (exit code, output, errors)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            run(app, arguments, program="python -m export")
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return call


@pytest.fixture
def refused(command: Run, tmp_path: Path) -> Iterator[Callable[..., None]]:
    """Run ``export`` and check its one sentence; nothing may be left in the folder."""
    before: list[set[Path]] = []

    def call(told: Sequence[object], *arguments: str) -> None:
        before.append(set(tmp_path.rglob("*")))
        exit_code, _, errors = command(*arguments)
        code, *values = map(str, told)
        assert_told(exit_code, errors, code, *values)
        assert errors.count("\n") == 1
        assert set(tmp_path.rglob("*")) == before[-1]

    yield call


@pytest.fixture
def plain(checkpoint: Callable[[str], Path]) -> str:
    return str(checkpoint("plain"))


def test_a_selector_that_the_encoder_cannot_serve(
    refused: Callable[..., None], checkpoint: Callable[[str], Path]
) -> None:
    siglip = str(checkpoint("siglip, plain"))
    told = [
        "signals-unavailable",
        "'fastervlm' needs cls_attention",
        "it has no class token",
        "such as divprune",
    ]
    refused(told, "llava", "--model", siglip, "--selector", "fastervlm")
    told = ["signals-unavailable", "cls_token", "it has no class token", "attention_object"]
    refused(told, "llava", "--model", siglip, "--signals", "cls_token,keys")


@pytest.mark.parametrize("ratio", ["1.0", "-0.1", "abc", "1", "nan", "90%"])
def test_prune_out_of_range(refused: Callable[..., None], plain: str, ratio: str) -> None:
    refused(["prune-out-of-range", f"--prune {ratio}"], "llava", "--model", plain, "--prune", ratio)


@pytest.mark.parametrize("keep", ["0", "26", "-1"])
def test_keep_out_of_range(refused: Callable[..., None], plain: str, keep: str) -> None:
    refused(["keep-out-of-range", f"--keep {keep}", 25], "llava", "--model", plain, "--keep", keep)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--keep", "many"], ["usage", "many"]),
        (["--keep", "9", "--prune", "0.5"], ["options-exclusive", "--prune 0.5", "--keep 9"]),
        (["--per-tile", "--per-frame"], ["options-exclusive", "--per-tile", "--per-frame"]),
        (["--selector", "divprun"], ["selector-unknown", "'divprun' (did you mean 'divprune'?)"]),
        (["--selector", "best"], ["selector-unknown", "'best': known"]),
        (["--precision", "fp23"], ["precision-unknown", "--precision fp23", "did you mean 'fp32'"]),
        (["--precision", "double"], ["precision-unknown", "--precision double is not known: choose"]),
        (["--capacity", "128"], ["capacity-with-dialect", "--capacity 128", "--dialect portable"]),
        (["--dialect", "static", "--capacity", "300"], ["capacity-out-of-range", "--capacity 300"]),
        (
            ["--dialect", "decomposed", "--precision", "int8"],
            ["precision-with-dialect", "vision=int8", "--dialect decomposed"],
        ),
        (["--colour"], ["usage", "--colour"]),
    ],
)
def test_wrong_options(
    refused: Callable[..., None], plain: str, arguments: list[str], told: list[str]
) -> None:
    refused(told, "llava", "--model", plain, *arguments)


def test_a_revision_without_a_model(command: Run) -> None:
    code, _, errors = command("llava", "--revision", "v1")
    assert_told(code, errors, "revision-without-model", "--revision v1", "--model")


def test_no_such_checkpoint(refused: Callable[..., None], tmp_path: Path) -> None:
    refused(["checkpoint-missing", "'nowhere'", "owner/name"], "llava", "--model", "nowhere")
    refused(["checkpoint-missing", "/no/such/folder", "owner/name"], "llava", "--model", "/no/such/folder")
    (tmp_path / "weights.bin").write_text("x")
    refused(["checkpoint-not-a-folder", "weights.bin"], "llava", "--model", "weights.bin")
    (tmp_path / "empty").mkdir()
    refused(["checkpoint-file-missing", "config.json"], "llava", "--model", "empty")


@pytest.mark.parametrize("mishap", ["offline", "unknown", "refused"])
def test_a_hub_id_that_cannot_be_had(
    refused: Callable[..., None], monkeypatch: pytest.MonkeyPatch, mishap: str
) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    def fail(*arguments: Any, **options: Any) -> str:
        if mishap == "offline":
            raise LocalEntryNotFoundError("Cannot reach the hub.\nand more")
        raise {"unknown": ValueError("no such repository"), "refused": ConnectionError("refused")}[mishap]

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    refused(["hub-download-failed", "somebody/some-model"], "llava", "--model", "somebody/some-model")


def test_a_hub_id_is_downloaded_without_pickles(
    command: Run, plain: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}
    snapshot = shutil.copytree(plain, tmp_path / "cache" / "0a1b2c")

    def download(hub_id: str, **options: Any) -> str:
        asked.update(options, hub_id=hub_id)
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    code, _, errors = command("llava", "--model", "somebody/some-model", "--no-verify", "--keep", "9")
    assert code == 0, errors
    assert asked["hub_id"] == "somebody/some-model"
    assert not any(
        pattern.endswith(("bin", "pt", "pth", "py", "*")) for pattern in asked["allow_patterns"][:3]
    )
    source = read_manifest(tmp_path / "bundles" / "some-model-divprune-9").source
    assert (source.model, source.revision) == ("somebody/some-model", "0a1b2c")


def test_another_family(refused: Callable[..., None], plain: str, tmp_path: Path) -> None:
    folder = shutil.copytree(plain, tmp_path / "next")
    edit_json(folder / "config.json", lambda data: data.update(model_type="vipllava"))
    refused(["model-unsupported", "vipllava", "ViP-LLaVA"], "llava", "--model", str(folder))


def test_export_says_what_it_did(command: Run, plain: str, tmp_path: Path) -> None:
    code, output, _ = command("llava", "--model", plain, "--prune", "0.6", "--no-verify", "--output", "out")
    assert code == 0
    assert "10 of 25 visual tokens by divprune; not verified (--no-verify)" in output
    assert "python -m runtime ask out" in output
    manifest = read_manifest(tmp_path / "out")
    assert manifest.selectors[0].keep == 10
    assert manifest.verification.status == "not verified"
    assert manifest.verification.reason == "--no-verify"
    code, _, errors = command("llava", "--model", plain, "--no-verify", "--output", "out")
    assert_told(code, errors, "output-exists", "'out'")
    # Before anything that takes long, such as calibration, which has something to say of its own.
    again = ("llava", "--model", plain, "--no-verify", "--output", "out", "--calibrate", str(tmp_path))
    code, _, errors = command(*again)
    assert_told(code, errors, "output-exists", "'out'")
    assert command("llava", "--model", plain, "--no-verify", "--output", "out", "--force")[0] == 0


def test_a_cache_of_fixed_size(command: Run, plain: str, tmp_path: Path) -> None:
    options = ("--keep", "9", "--dialect", "static", "--capacity", "90", "--no-verify", "--output", "out")
    code, _, errors = command("llava", "--model", plain, *options)
    assert code == 0, errors
    assert read_manifest(tmp_path / "out").language_model.capacity == 90


def test_verification_is_the_default_where_torch_is(command: Run, plain: str, tmp_path: Path) -> None:
    code, output, errors = command("llava", "--model", plain, "--keep", "9", "--output", "out")
    assert code == 0, errors
    assert "verified against PyTorch" in output
    for stage in ("weights", "structure", "vision", "selection", "language"):
        assert stage in output
    assert read_manifest(tmp_path / "out").verification.status == "verified"


def test_a_failed_verification_is_exit_code_one(
    command: Run, plain: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from divprune_edge.models.rope import RopeSpec

    frequencies = RopeSpec.inverse_frequencies
    monkeypatch.setattr(RopeSpec, "inverse_frequencies", lambda self, size: frequencies(self, size) * 1.01)
    code, output, errors = command("llava", "--model", plain, "--output", "out")
    assert_told(code, errors, "verification-failed", "language", expected=1)
    assert errors.count("\n") == 1
    assert "FAILED" in output
    assert list(tmp_path.iterdir()) == []


def test_without_the_extra_it_says_so(
    command: Run, refused: Callable[..., None], plain: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("divprune_edge.export.verify.available", lambda **asked: "torch is not installed")
    told = ["pytorch-missing", "--verify", "torch is not installed", "pip install"]
    refused(told, "llava", "--model", plain, "--verify", "--output", "other")
    code, output, _ = command("llava", "--model", plain, "--output", "out")
    assert code == 0
    assert "not verified (torch is not installed)" in output
    assert read_manifest(tmp_path / "out").verification.reason == "torch is not installed"


def test_word_for_word_from_a_clone(tmp_path: Path) -> None:
    """Without --model it is the demo checkpoint, and the first line says so and what to add for another."""
    result = run_module(
        "export", "llava", "--prune", "0.9", "--no-verify", "--output", str(tmp_path / "demo")
    )
    assert result.returncode == 0, result.stderr
    first = result.stdout.splitlines()[0]
    assert "bundled demo checkpoint" in first
    assert "--model llava-hf/llava-1.5-7b-hf" in first
    assert read_manifest(tmp_path / "demo").selectors[0].keep == 58


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("--keep 144 --schedule fastv", "--keep 144 --schedule fastv"),
        ("--schedule own.json", "--schedule FILE.json"),
    ],
)
def test_the_notice_repeats_what_was_asked_for(tmp_path: Path, given: str, told: str) -> None:
    """But no file's name, which is for the model that it was made for, and no other budget in its place."""
    result = run_module("export", "llava", *given.split(), "--output", str(tmp_path), cwd=tmp_path)
    assert result.returncode == 2, result.stdout
    assert result.stdout.splitlines()[0].endswith(f"--model llava-hf/llava-1.5-7b-hf {told}")


def test_no_arguments_show_help() -> None:
    result = run_module("export", "llava", "--help")
    assert result.returncode == 0
    for option in (
        "--model",
        "--prune",
        "--keep",
        "--precision",
        "--output",
        "--force",
        "--selector",
        "--verify",
    ):
        assert option in result.stdout


def test_several_selectors_are_told_one_by_one_and_listed_once(command: Run, demo_bundle: Path) -> None:
    shutil.copytree(demo_bundle, "bundle")
    arguments = ("selectors", "bundle", "--selectors", "uniform,random", "--keep", "20,10", "--no-verify")
    code, out, errors = command(*arguments)
    assert code == 0, errors
    *added, listed = out.splitlines()
    assert [line.split()[1] for line in added] == ["uniform-20", "uniform-10", "random-20", "random-10"]
    assert not any("random-10" in line for line in added[:-1])
    assert listed == "The bundle now has divprune-58, uniform-20, uniform-10, random-20, random-10."
    code, out, errors = command(*arguments)
    assert code == 0, errors
    assert out.startswith("Nothing was added") and "--force" in out


def test_a_checkpoint_is_told_from_a_bundle(refused: Callable[..., None], plain: str) -> None:
    told = ["bundle-without-manifest", plain, f"-m export --model {plain}"]
    refused(told, "selectors", plain)


def test_names_that_are_not_there(refused: Callable[..., None], plain: str) -> None:
    refused(
        ["model-unknown", "'llava-1.5-7x'", "did you mean 'llava-1.5-7b'"], "cost", "--model", "llava-1.5-7x"
    )
    refused(["dialect-unknown", "'ort'", "decomposed"], "llava", "--model", plain, "--dialect", "ort")
    refused(["fit-images-missing", "no folder 'nowhere'"], "fit", plain, "--images", "nowhere")
