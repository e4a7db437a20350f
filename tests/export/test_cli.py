"""``python -m export`` as a user types it: what it prints, and one sentence for every mistake."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from checkpoints import edit_json
from conftest import run_module

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
def refused(command: Run, tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Run ``export`` and return its one sentence; nothing may be left in the folder."""
    before: list[set[Path]] = []

    def call(*arguments: str) -> str:
        before.append(set(tmp_path.rglob("*")))
        code, _, errors = command(*arguments)
        assert code == 2, errors
        assert re.fullmatch(r"error\[[a-z0-9-]+\]: [^\n]+\n", errors), errors
        assert set(tmp_path.rglob("*")) == before[-1]
        return errors

    yield call


@pytest.fixture
def plain(checkpoint: Callable[[str], Path]) -> str:
    return str(checkpoint("plain"))


@pytest.mark.parametrize("ratio", ["1.0", "-0.1", "abc", "1", "nan", "90%"])
def test_prune_out_of_range(refused: Callable[..., str], plain: str, ratio: str) -> None:
    sentence = refused("llava", "--model", plain, "--prune", ratio)
    assert f"--prune {ratio} is not a pruning ratio: give the share of visual tokens to drop" in sentence


@pytest.mark.parametrize("keep", ["0", "26", "-1"])
def test_keep_out_of_range(refused: Callable[..., str], plain: str, keep: str) -> None:
    sentence = refused("llava", "--model", plain, "--keep", keep)
    assert f"--keep {keep} is out of range: this encoder gives 25 visual tokens" in sentence


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--keep", "many"], "many"),
        (["--keep", "9", "--prune", "0.5"], "give --prune or --keep, not both"),
        (["--selector", "divprun"], "There is no selector 'divprun' (did you mean 'divprune'?)"),
        (["--selector", "best"], "There is no selector 'best': known are"),
        (["--precision", "fp23"], "--precision fp23 is not known (did you mean 'fp32'?)"),
        (["--precision", "double"], "--precision double is not known: choose"),
        (["--capacity", "128"], "--capacity 128 does not go with --dialect portable"),
        (["--dialect", "static", "--capacity", "300"], "--capacity 300 is out of range"),
        (
            ["--dialect", "decomposed", "--precision", "int8"],
            "vision=int8 does not go with --dialect decomposed",
        ),
        (["--colour"], "No such option: --colour"),
    ],
)
def test_wrong_options(refused: Callable[..., str], plain: str, arguments: list[str], sentence: str) -> None:
    assert sentence in refused("llava", "--model", plain, *arguments)


def test_no_such_checkpoint(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "There is no folder 'nowhere', and it does not look like a hub id" in refused(
        "llava", "--model", "nowhere"
    )
    sentence = refused("llava", "--model", "/no/such/folder")
    assert "There is no folder '/no/such/folder', and it does not look like a hub id (owner/name)" in sentence
    (tmp_path / "weights.bin").write_text("x")
    assert "is a file: give the folder that holds config.json" in refused("llava", "--model", "weights.bin")
    (tmp_path / "empty").mkdir()
    assert "has no config.json, which says what model this is" in refused("llava", "--model", "empty")


@pytest.mark.parametrize("mishap", ["offline", "unknown", "refused"])
def test_a_hub_id_that_cannot_be_had(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, mishap: str
) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    def fail(*arguments: Any, **options: Any) -> str:
        if mishap == "offline":
            raise LocalEntryNotFoundError("Cannot reach the hub.\nand more")
        raise {"unknown": ValueError("no such repository"), "refused": ConnectionError("refused")}[mishap]

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    sentence = refused("llava", "--model", "somebody/some-model")
    assert "There is no folder 'somebody/some-model', and the hub does not give it (" in sentence
    assert "check the id and the network" in sentence


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


def test_another_family(refused: Callable[..., str], plain: str, tmp_path: Path) -> None:
    folder = shutil.copytree(plain, tmp_path / "next")
    edit_json(folder / "config.json", lambda data: data.update(model_type="llava_next"))
    assert "('llava_next') cannot be exported: LLaVA-NeXT (LLaVA-1.6)" in refused(
        "llava", "--model", str(folder)
    )


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
    assert code == 2
    assert "'out' exists already" in errors
    # Before anything that takes long, such as calibration, which has something to say of its own.
    again = ("llava", "--model", plain, "--no-verify", "--output", "out", "--calibrate", str(tmp_path))
    assert "'out' exists already" in command(*again)[2]
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
    assert code == 1
    assert re.fullmatch(
        r"error\[verification-failed\]: The graphs do not match PyTorch: language [^\n]+no bundle was written\.\n",
        errors,
    )
    assert "FAILED" in output
    assert list(tmp_path.iterdir()) == []


def test_without_the_extra_it_says_so(
    command: Run, refused: Callable[..., str], plain: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("divprune_edge.export.verify.available", lambda: "torch is not installed")
    sentence = refused("llava", "--model", plain, "--verify", "--output", "other")
    assert "--verify needs PyTorch and transformers (torch is not installed): " in sentence
    assert "-m pip install -e '.[cpu,verify]' in the clone" in sentence
    code, output, _ = command("llava", "--model", plain, "--output", "out")
    assert code == 0
    assert "not verified (torch is not installed)" in output
    assert read_manifest(tmp_path / "out").verification.reason == "torch is not installed"


def test_word_for_word_from_a_clone(tmp_path: Path) -> None:
    """Without --model it is the demo checkpoint, and the first line says so and what to type instead."""
    result = run_module(
        "export", "llava", "--prune", "0.9", "--no-verify", "--output", str(tmp_path / "demo")
    )
    assert result.returncode == 0, result.stderr
    first = result.stdout.splitlines()[0]
    assert "bundled demo checkpoint" in first
    assert "--model llava-hf/llava-1.5-7b-hf --prune 0.9" in first
    assert read_manifest(tmp_path / "demo").selectors[0].keep == 58


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
