"""``python -m runtime build``: what it prints, and one sentence with exit code 2 for every mistake."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from plugins_emulation import ROOT

from divprune_edge.runtime.cli import app
from divprune_edge.runtime.engines import builder

Command = Any
Here = Any


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_a_build(command: Command, here: Here, bundle: Path) -> None:
    done = command("build", bundle, "--max-prompt", 200, "--workspace", 64, "--optimization-level", 2)
    assert done.code == 0, done.err
    folder, device, limits = done.out.splitlines()
    assert Path(folder).parent == bundle / "engines"
    assert device == "sm_87, TensorRT 10.3.0, CUDA 12.6"
    assert limits == "prompts of up to 200 tokens at once, 58 of them visual"
    assert [line for line in done.err.splitlines() if "..." in line] == [
        "(1 of 3) divprune-58 ...",
        "(2 of 3) vision_encoder ...",
        "(3 of 3) language_model ...",
    ]
    assert here.world.built[0]["workspace"] == 64 << 20
    assert here.world.built[0]["level"] == 2
    again = command("build", bundle, "--max-prompt", 200)
    assert (again.code, again.out) == (2, "")
    assert again.err.startswith(f"error: '{folder}' holds these engines already")
    assert command("build", bundle, "--max-prompt", 200, "--force", "--selector", "all").code == 0


def test_verbose_shows_what_tensorrt_says(command: Command, here: Here, bundle: Path) -> None:
    here.world.build_error = "no implementation"
    failed = command("build", bundle, "--verbose")
    assert failed.code == 1
    assert "[TensorRT] no implementation" in failed.err
    assert failed.err.splitlines()[-1].endswith("divprune-58.onnx': no implementation; what follows from it.")


def test_without_tensorrt(command: Command, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    failed = command("build", bundle)
    assert (failed.code, failed.out) == (2, "")
    assert failed.err.startswith("error: TensorRT's Python module cannot be loaded (")
    assert len(failed.err.splitlines()) == 1
    assert not (bundle / "engines").exists()


def test_interrupted(command: Command, here: Here, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def press(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(builder, "_build", press)
    stopped = command("build", bundle)
    assert stopped.code == 130
    assert list((bundle / "engines").iterdir()) == []


@pytest.mark.parametrize(
    "wrong",
    [
        ("--max-prompt", 0),
        ("--workspace", 0),
        ("--optimization-level", 6),
        ("--target", "nowhere"),
        ("--selector", "x"),
    ],
)
def test_wrong_values(command: Command, here: Here, bundle: Path, wrong: tuple[Any, ...]) -> None:
    failed = command("build", bundle, *wrong)
    assert failed.code == 2
    assert len(failed.err.splitlines()) == 1
    assert str(wrong[1]) in failed.err
    assert not (bundle / "engines").exists()


def test_every_option_is_documented() -> None:
    page = (ROOT / "docs" / "engines.md").read_text(encoding="utf-8")
    command = typer.main.get_command(app).commands["build"]  # type: ignore[attr-defined]
    options = {name for option in command.params for name in option.opts if name.startswith("--")}
    assert {"--selector", "--force"} <= options
    for option in options - {"--verify-hashes", "--help"}:
        assert f"| `{option}" in page
