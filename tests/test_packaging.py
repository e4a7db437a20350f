"""The wheel is what users get: what it holds, and that it works from any folder."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from conftest import run_code

from divprune_edge.export.package.wheel import runtime_wheel, wheel_name

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("export", "models", "runtime", "plugins")
HOSTILE = "raise SystemExit('a module of the user was imported')\n"


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    source = out / "source"
    # The working tree without what git ignores: an old build folder must not leak into the wheel.
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(listing, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in files.splitlines():
        if (ROOT / name).exists():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, source / name, follow_symlinks=False)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(out),
    ]
    subprocess.run([*command, str(source)], check=True)
    return next(out.glob("divprune_edge-*.whl"))


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def run_installed(site: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(site), "COLUMNS": "200"}
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def test_the_top_level_is_the_package_and_three_shims(wheel: Path) -> None:
    top = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {name for name in top if not name.endswith(".dist-info")} == {
        "divprune_edge",
        "export.py",
        "runtime.py",
        *(["plugins.py"] if (ROOT / "shims/plugins.py").is_file() else []),
    }


def test_every_module_of_the_clone_but_the_trainer_is_in_the_wheel(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            name = path.relative_to(ROOT).as_posix()
            assert (f"divprune_edge/{name}" in inside) != name.startswith("models/demo/trainer/"), name


def test_the_wheel_has_the_demo_checkpoint(wheel: Path) -> None:
    inside = zipfile.ZipFile(wheel).namelist()
    assert "divprune_edge/models/demo/checkpoint/model.safetensors" in inside
    assert "divprune_edge/models/demo/picture.png" in inside


def test_export_and_ask_from_an_installed_wheel(installed: Path, tmp_path: Path) -> None:
    result = run_installed(installed, tmp_path, "export", "llava", "--prune", "0.9", "--no-verify")
    assert result.returncode == 0, result.stderr
    assert "bundled demo checkpoint" in result.stdout.splitlines()[0]
    assert "--model llava-hf/llava-1.5-7b-hf" in result.stdout.splitlines()[0]
    image = installed / "divprune_edge/models/demo/picture.png"
    question = ["--image", str(image), "How many circles are there?"]
    answer = run_installed(installed, tmp_path, "runtime", "ask", "bundles/demo-divprune-58", *question)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.strip()


def test_a_package_for_a_jetson_from_an_installed_wheel(installed: Path, tmp_path: Path) -> None:
    """The runtime's wheel in it is the one that a clone makes."""
    options = ["--target", "orin-nano-8gb", "--package", "--no-verify", "--output", "demo"]
    result = run_installed(installed, tmp_path, "export", "llava", *options)
    assert result.returncode == 0, result.stderr
    with tarfile.open(tmp_path / "demo-orin-nano-8gb.tar") as tar:
        packed = tar.extractfile(f"demo-orin-nano-8gb/wheels/{wheel_name()}")
        assert packed is not None
        there, here = contents(packed.read()), contents(runtime_wheel())
    assert there.keys() == here.keys()
    assert [name for name in here if here[name] != there[name]] == []


def contents(wheel: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.mark.parametrize("module", ["models", "tests"])
def test_common_names_are_left_to_the_user(installed: Path, tmp_path: Path, module: str) -> None:
    result = run_installed(installed, tmp_path, module)
    assert f"No module named {module}" in result.stderr


def test_modules_of_the_user_with_our_names_do_no_harm(installed: Path, tmp_path: Path) -> None:
    for name in ("models", "export", "runtime", "plugins"):
        (tmp_path / f"{name}.py").write_text(HOSTILE)
    result = run_installed(installed, tmp_path, "divprune_edge", "export", "llava", "--no-verify")
    assert result.returncode == 0, result.stderr
    (tmp_path / "export.py").unlink()
    result = run_installed(installed, tmp_path, "export", "llava", "--no-verify", "--force")
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("arguments", [["runtime", "ask"], ["export", "llava"]])
def test_help_loads_nothing_heavy(tmp_path: Path, arguments: list[str]) -> None:
    code = (
        "import sys, runpy\n"
        f"sys.argv = {[*arguments, '--help']!r}\n"
        f"try: runpy.run_module({arguments[0]!r}, run_name='__main__', alter_sys=False)\n"
        "except SystemExit: pass\n"
        "heavy = {'numpy', 'onnxruntime', 'onnx_ir', 'torch', 'transformers', 'tokenizers', 'PIL'}\n"
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or 0)\n"
    )
    result = run_code(code)
    assert "--help" in result.stdout
