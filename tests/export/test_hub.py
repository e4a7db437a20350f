"""What can be typed after --model: hub ids, revisions and addresses; and advice that works when it is followed."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import huggingface_hub
import pytest
from checkpoints import edit_json
from conftest import run_code, run_module
from hub_server import COMMIT, GATED, serve
from raising import refused
from tokenizer_kinds import byte_level

from divprune_edge.export.hub import open_checkpoint
from divprune_edge.manifest import read_manifest

NAME = "somebody/some-model"


@pytest.fixture
def plain(checkpoint: Callable[[str], Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint("plain"), tmp_path / "tiny"))


@pytest.fixture
def asked(plain: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the client was asked for; its functions have their real signatures."""
    asked: dict[str, Any] = {}

    def download(repo_id: str, **options: Any) -> str:
        asked.update(options, repo_id=repo_id)
        return str(plain)

    spec = create_autospec(huggingface_hub.snapshot_download, side_effect=download)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", spec)
    return asked


@pytest.mark.parametrize(
    ("model", "revision", "expected"),
    [
        (NAME, None, None),
        (NAME, "v1", "v1"),
        (f"{NAME}@v1", None, "v1"),
        (f"{NAME}@v1", "v1", "v1"),
        (f"{NAME}@refs/pr/3", None, "refs/pr/3"),
        (f"https://huggingface.co/{NAME}", None, None),
        (f"https://huggingface.co/{NAME}/", "v1", "v1"),
        (f"https://huggingface.co/{NAME}/tree/v1", None, "v1"),
        (f"https://huggingface.co/{NAME}/tree/refs%2Fpr%2F3", None, "refs/pr/3"),
        (f"https://huggingface.co/{NAME}/tree/refs/pr/3?x=1#files", None, "refs/pr/3"),
        (f"http://hf.co/{NAME}", None, None),
        (f"huggingface.co/{NAME}/tree/main", None, "main"),
    ],
)
def test_ids_revisions_and_addresses(
    asked: dict[str, Any], model: str, revision: str | None, expected: str | None
) -> None:
    with open_checkpoint(model, revision) as opened:
        assert (asked["repo_id"], asked["revision"], opened.name) == (NAME, expected, NAME)


@pytest.mark.parametrize(
    ("model", "revision", "code"),
    [
        (f"{NAME}@v1", "v2", "revisions-disagree"),
        (f"https://huggingface.co/{NAME}/tree/v1", "v2", "revisions-disagree"),
        (f"https://huggingface.co/{NAME}/tree/main/sub", None, "hub-address-invalid"),
        (f"https://huggingface.co/{NAME}/tree", None, "hub-address-invalid"),
        (f"https://huggingface.co/{NAME}/blob/main/x.json", None, "hub-address-invalid"),
        ("https://huggingface.co/datasets/a/b", None, "hub-address-invalid"),
        ("https://huggingface.co/somebody", None, "hub-address-invalid"),
        ("https://example.org/a/b", None, "hub-address-invalid"),
        ("[x", None, "checkpoint-missing"),
        ("a/b/c", None, "checkpoint-missing"),
        ("a/b@", None, "checkpoint-missing"),
    ],
)
def test_what_names_no_repository(asked: dict[str, Any], model: str, revision: str | None, code: str) -> None:
    sides = () if revision is None else ("'v1'", f"--revision for '{revision}'")
    with refused(code, f"'{model}'", *sides):
        open_checkpoint(model, revision)
    assert asked == {}


def test_a_revision_of_a_folder(plain: Path) -> None:
    with refused("revision-of-a-folder", "--revision v1", plain):
        open_checkpoint(str(plain), "v1")


def test_without_the_hubs_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with refused("hub-client-missing", f"'{NAME}'", "[export]"):
        open_checkpoint(NAME)


@pytest.fixture
def hub(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The real client in processes of its own, and a hub that serves the checkpoint."""
    with serve(plain, NAME) as address:
        for name, value in {
            "HF_ENDPOINT": address,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
        }.items():
            monkeypatch.setenv(name, value)
        yield address


def export(model: str, output: Path, *options: str) -> str:
    arguments = ("export", "llava", "--model", model, "--keep", "9", "--no-verify", "--output", str(output))
    result = run_module(*arguments, *options)
    assert "Traceback" not in result.stderr
    return result.stderr.strip().splitlines()[-1] if result.returncode else ""


def test_from_a_hub(hub: str, tmp_path: Path) -> None:
    for number, (model, options) in enumerate([(NAME, ("--revision", "v1")), (f"{hub}/{NAME}/tree/v1", ())]):
        folder = tmp_path / f"out{number}"
        assert export(model, folder, *options) == ""
        source = read_manifest(folder).source
        assert (source.model, source.revision) == (NAME, COMMIT)
    for model, code, shown in (
        (f"{NAME}@v9", "revision-unknown", "'v9'"),
        (GATED, "hub-access", "hf auth login"),
    ):
        told = export(model, tmp_path / "no")
        assert told.startswith(f"error[{code}]: ") and shown in told, told


def follow(tmp_path: Path, advice: str) -> None:
    """Run the two steps of an advice as they are written."""
    steps = {
        "snapshot_download": "from huggingface_hub import snapshot_download",
        "LlavaForConditionalGeneration": "from transformers import LlavaForConditionalGeneration",
        "Qwen2Tokenizer": "from transformers import Qwen2Tokenizer",
    }
    calls = re.findall(
        r"(?:snapshot_download|\w+\.from_pretrained)\([^)]*\)(?:\.save_pretrained\([^)]*\))?", advice
    )
    assert len(calls) == 2
    code = "\n".join([*steps.values(), *calls])
    run_code(code, tmp_path)


def test_pickles_alone(hub: str, plain: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    weights = plain / "model.safetensors"
    torch.save(load_file(weights), plain / "pytorch_model.bin")
    weights.unlink()
    advice = export(NAME, tmp_path / "out")
    assert f"'{NAME}' has only pickle weights (pytorch_model.bin), which can run code" in advice
    assert not list((tmp_path / "home").rglob("*.bin"))
    follow(tmp_path, advice)
    assert export(str(tmp_path / "FOLDER"), tmp_path / "out") == ""


def test_an_older_tokenizer_alone(hub: str, plain: Path, tmp_path: Path) -> None:
    """A vocabulary and merges, as GPT-2 and Qwen have them; sentencepiece would need its own library."""
    byte_level().model.save(str(plain))
    assert (plain / "merges.txt").is_file()
    (plain / "tokenizer.json").unlink()
    edit_json(plain / "tokenizer_config.json", lambda data: data.update(tokenizer_class="Qwen2Tokenizer"))
    edit_json(plain / "config.json", lambda data: data.update(image_token_index=3, image_token_id=3))
    advice = export(NAME, tmp_path / "out")
    assert f"'{NAME}' has no tokenizer.json: download all of it into a FOLDER of your own" in advice
    follow(tmp_path, advice)
    assert (tmp_path / "FOLDER" / "tokenizer.json").is_file()
    answer = export(str(tmp_path / "FOLDER"), tmp_path / "out")
    assert "no tokenizer.json" not in answer


def test_a_sentencepiece_model_alone(hub: str, plain: Path, tmp_path: Path) -> None:
    (plain / "tokenizer.json").unlink()
    (plain / "tokenizer.model").write_bytes(b"stand-in")
    advice = export(NAME, tmp_path / "out")
    assert "(with sentencepiece and protobuf installed), and export FOLDER" in advice
    assert list((tmp_path / "home").rglob("tokenizer.model"))
