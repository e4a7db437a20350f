"""A bundle is written whole or not at all, and says what it was made from."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoints import TEMPLATE
from exporting import Bundle, Silent, export, plan_of, unverified
from raising import failed, refused

from divprune_edge.export.bundle import export_bundle
from divprune_edge.export.plan import ExportPlan
from divprune_edge.manifest import Check, Verification, read_manifest
from divprune_edge.models.families.llava.family import VICUNA_TEMPLATE

Usage = namedtuple("Usage", "total used free")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def plan(checkpoint: Callable[[str], Path]) -> ExportPlan:
    return plan_of(checkpoint("plain"))


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_manifest_is_what_was_written(bundle: Callable[[], Bundle]) -> None:
    exported = bundle()
    manifest = read_manifest(exported.folder)
    assert manifest == exported.manifest
    on_disk = {
        path.relative_to(exported.folder).as_posix() for path in exported.folder.rglob("*") if path.is_file()
    }
    assert set(manifest.files) == on_disk - {"manifest.json"}
    for name, info in manifest.files.items():
        data = (exported.folder / name).read_bytes()
        assert (info.size, info.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    folder = exported.plan.checkpoint.folder
    assert manifest.source.model == folder.name
    assert manifest.source.config_sha256 == hashlib.sha256((folder / "config.json").read_bytes()).hexdigest()
    assert (exported.folder / manifest.prompt.chat_template).read_text() == TEMPLATE
    assert (exported.folder / manifest.prompt.tokenizer).read_bytes() == (
        folder / "tokenizer.json"
    ).read_bytes()
    assert str(folder.parent) not in (exported.folder / "manifest.json").read_text(), "no absolute paths"


@pytest.mark.parametrize(
    ("name", "template"),
    [
        ("template with BOS, tokenizer without", "{{ bos_token }}" + TEMPLATE),
        ("template in tokenizer_config.json", TEMPLATE),
        ("template in processor_config.json", TEMPLATE),
        ("template in chat_template.json", TEMPLATE),
        ("no template", VICUNA_TEMPLATE),
    ],
)
def test_the_template_comes_from_any_place(name: str, template: str, bundle: Callable[[str], Bundle]) -> None:
    exported = bundle(name)
    assert (exported.folder / exported.manifest.prompt.chat_template).read_text() == template


def test_padded_rows_are_never_sampled(bundle: Callable[[str], Bundle]) -> None:
    exported = bundle("padded vocabulary")
    language, prompt = exported.manifest.language_model, exported.manifest.prompt
    tokens = len(json.loads((exported.folder / "tokenizer.json").read_text())["model"]["vocab"])
    assert language.vocabulary == language.embedding_rows == tokens + 13
    assert prompt.forbidden_ids == (4, *range(tokens, tokens + 13))


def test_licence_and_revision_travel(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint("plain"), tmp_path / "licensed")
    (folder / "LICENSE").write_text("as is")
    (folder / "README.md").write_text("---\ntags: [x]\nlicense: apache-2.0\n---\n# Card\nlicense: mit\n")
    exported = export(plan_of(folder), tmp_path / "bundle")
    assert exported.manifest.source.licence == "apache-2.0"
    assert (exported.folder / "LICENSE").read_text() == "as is"


def test_output_exists(plan: ExportPlan, tmp_path: Path) -> None:
    output = tmp_path / "bundle"
    export(plan, output)
    with refused("output-exists", "--output", "--force"):
        export(plan, output)
    assert listing(tmp_path) == ["bundle"]


def test_force_replaces_only_bundles(plan: ExportPlan, tmp_path: Path) -> None:
    output = tmp_path / "bundle"
    export(plan, output)
    (output / "stale.txt").write_text("old")
    export_bundle(plan, output, force=True, verify=unverified, report=Silent())
    assert not (output / "stale.txt").exists()
    assert listing(tmp_path) == ["bundle"]
    other = tmp_path / "holiday"
    other.mkdir()
    (other / "photo.jpg").write_text("precious")
    with refused("output-not-a-bundle", "--force"):
        export_bundle(plan, other, force=True, verify=unverified, report=Silent())
    assert listing(other) == ["photo.jpg"]
    (tmp_path / "empty").mkdir()
    export_bundle(plan, tmp_path / "empty", force=True, verify=unverified, report=Silent())
    assert read_manifest(tmp_path / "empty")


def test_disk_full_is_seen_before_writing(
    plan: ExportPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(2**30, 2**30 - 2**20, 2**20))
    with refused("disk-too-full", "1 MiB"):
        export(plan, tmp_path / "new" / "bundle")
    assert listing(tmp_path) == []


def test_disk_full_while_writing(plan: ExportPlan, tmp_path: Path) -> None:
    def full(name: str) -> None:
        raise OSError(28, "No space left on device")

    with refused("output-write-failed", "No space left on device"):
        export_bundle(plan, tmp_path / "bundle", force=False, verify=unverified, report=Silent(full))
    assert listing(tmp_path) == []


@pytest.mark.parametrize("ending", [KeyboardInterrupt, SystemExit, RuntimeError])
@pytest.mark.parametrize("nth", [1, 20, 40])
def test_whatever_ends_the_export_leaves_nothing(
    plan: ExportPlan, tmp_path: Path, ending: type[BaseException], nth: int
) -> None:
    written: list[str] = []

    def stop(name: str) -> None:
        written.append(name)
        if len(written) == nth:
            raise ending

    with pytest.raises(ending):
        export_bundle(plan, tmp_path / "bundle", force=False, verify=unverified, report=Silent(stop))
    assert listing(tmp_path) == []


def test_an_interrupted_force_keeps_the_old_bundle(plan: ExportPlan, tmp_path: Path) -> None:
    old = export(plan, tmp_path / "bundle")

    def stop(name: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_bundle(plan, tmp_path / "bundle", force=True, verify=unverified, report=Silent(stop))
    assert read_manifest(tmp_path / "bundle") == old.manifest
    assert listing(tmp_path) == ["bundle"]


def test_a_failed_verification_writes_nothing(plan: ExportPlan, tmp_path: Path) -> None:
    def failing(plan: ExportPlan, folder: Path) -> Verification:
        assert (folder / "language_model.onnx").is_file()
        checks = (
            Check(stage="vision", name="visual tokens", value=1e-7, limit=1e-4, unit="relative", passed=True),
            Check(stage="language", name="prefill", value=0.5, limit=1e-4, unit="relative", passed=False),
        )
        return Verification(status="verified", checks=checks)

    with failed("verification-failed", "language prefill", 0.5) as error:
        export_bundle(plan, tmp_path / "bundle", force=False, verify=failing, report=Silent())
    assert error.value.exit_code == 1
    assert listing(tmp_path) == []


def test_verification_is_stored(plan: ExportPlan, tmp_path: Path) -> None:
    from divprune_edge.export.verify import verify_bundle

    def verify(plan: ExportPlan, folder: Path) -> Verification:
        return verify_bundle(plan, folder, lambda line: None)

    export_bundle(plan, tmp_path / "bundle", force=False, verify=verify, report=Silent())
    stored = read_manifest(tmp_path / "bundle").verification
    assert stored.status == "verified"
    assert len(stored.checks) > 15
    assert all(check.passed for check in stored.checks)


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c_leaves_nothing(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    """The real signal to the real command, while it writes."""
    output = tmp_path / "bundle"
    code = (
        "import sys, time\n"
        "import divprune_edge.export.weights as weights\n"
        "cast = weights.cast_weight\n"
        "def slow(*arguments):\n"
        "    time.sleep(0.2)\n"
        "    return cast(*arguments)\n"
        "weights.cast_weight = slow\n"
        "from divprune_edge.export.cli import main\n"
        f"sys.argv = ['export', 'llava', '--model', {str(checkpoint('plain'))!r}, '--no-verify']\n"
        f"sys.argv += ['--output', {str(output)!r}]\n"
        "main()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while not list(tmp_path.glob(".bundle.*")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130
    assert errors.strip() == "interrupted"
    assert listing(tmp_path) == []


def test_exports_are_reproducible(plan: ExportPlan, tmp_path: Path) -> None:
    one, two = (export(plan, tmp_path / name) for name in ("one", "two"))
    assert one.manifest == two.manifest


def test_no_network_is_touched(plan: ExportPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("the export opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    export(plan, tmp_path / "bundle")
