"""The archive: what is in it, that it is the same every time, and that it is whole or not there."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import typer
from conftest import ROOT, run_module
from exporting import Silent
from packaging.requirements import Requirement
from raising import assert_told, refused

from divprune_edge.errors import UserError
from divprune_edge.export.package import archive as archives
from divprune_edge.export.package import archive_path, check_package, write_package
from divprune_edge.export.package.command import package_bundle
from divprune_edge.export.package.facts import L4T
from divprune_edge.export.package.requirements import requirements
from divprune_edge.export.package.wheel import installed_dependencies, runtime_wheel, wheel_name
from divprune_edge.export.reporter import ConsoleReporter
from divprune_edge.manifest import read_manifest
from divprune_edge.models.targets import TARGETS, Target, find_target
from divprune_edge.runtime.cli import LAB_COMMANDS
from divprune_edge.runtime.cli import app as runtime_app

ORIN = find_target("agx-orin-64gb")
JETSONS = [target for target in TARGETS.values() if target.jetpack]
WEIGHTS = "bundle/language_model.data"


def names(path: Path) -> list[str]:
    with tarfile.open(path) as tar:
        return [member.name.split("/", 1)[1] for member in tar.getmembers()]


def test_what_is_inside(archive: Path, bundle: Path) -> None:
    inside = names(archive)
    expected = {f"bundle/{name}" for name in read_manifest(bundle).files} | {"bundle/manifest.json"}
    expected |= {
        "README.txt",
        "SHA256SUMS",
        "install.sh",
        "package.env",
        "requirements.txt",
        "selftest/check_answer.py",
        "selftest/expected.json",
        "selftest/picture.png",
        f"wheels/{wheel_name()}",
    }
    sources = {name for name in inside if name.startswith("plugin-sources/")}
    assert {"plugin-sources/CMakeLists.txt", "plugin-sources/csrc/max_min.cu"} <= sources
    assert set(inside) == expected | sources
    assert len(inside) == len(set(inside))


def test_members_are_nobodys_and_of_no_time(archive: Path) -> None:
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            assert member.isfile()
            assert (member.uid, member.gid, member.uname, member.gname) == (0, 0, "", "")
            assert member.mtime == 315532800
            assert member.mode == (0o755 if member.name.endswith("install.sh") else 0o644)


def test_the_same_bytes_every_time(archive: Path, bundle: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle, tmp_path / "demo", copy_function=shutil.copyfile)
    (copy / "engines").mkdir()
    (copy / "engines/language_model.plan").write_bytes(b"of another machine")
    (copy / "notes.txt").write_text("not of the bundle")
    again = archive_path(copy, ORIN)
    assert again.name == archive.name
    write_package(copy, ORIN, again, force=False, report=Silent())
    assert again.read_bytes() == archive.read_bytes()


def test_every_sum_holds(unpacked: Path) -> None:
    lines = (unpacked / "SHA256SUMS").read_text().splitlines()
    listed = dict(reversed(line.split("  ", 1)) for line in lines)
    files = {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*") if path.is_file()}
    assert set(listed) == files - {"SHA256SUMS"}
    for name, digest in listed.items():
        assert hashlib.sha256((unpacked / name).read_bytes()).hexdigest() == digest


def test_the_recorded_answer(unpacked: Path) -> None:
    expected = json.loads((unpacked / "selftest/expected.json").read_text())
    assert expected["answer"] == "purple"
    assert len(expected["token_ids"]) >= 2
    assert "ONNX Runtime" in expected["source"]


def test_readme_and_facts_have_no_gaps(unpacked: Path) -> None:
    assert not re.search(r"@[A-Z0-9_]+@", (unpacked / "README.txt").read_text())
    used = set(re.findall(r"\b(?:VERSION|[A-Z0-9]+_[A-Z0-9_]+|TARGET|MODEL|WHEEL|CUDA|L4T)\b", SCRIPT))
    given = {line.split("=")[0] for line in (unpacked / "package.env").read_text().splitlines()}
    of_the_shell = {"LC_ALL", "BASH_SOURCE", "BASH_REMATCH", "TENSORRT_INCLUDE_DIR", "POWER_MODEL"}
    assert used - of_the_shell - given == set()


SCRIPT = (ROOT / "export/package/files/install.sh").read_text()


@pytest.mark.parametrize("target", JETSONS, ids=lambda target: target.name)
def test_every_jetson_has_pins_that_the_tests_ran_with(target: Target) -> None:
    assert target.jetpack in L4T
    pins = requirements(target)
    assert not {"torch", "transformers", "onnx", "onnxruntime", "tensorrt"} & set(pins)
    assert {re.split("[>=]", entry)[0] for entry in installed_dependencies()} <= set(pins)
    environment = {"python_version": str(target.python)}
    lines = [
        Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    ]
    constraints = {
        r.name: str(r.specifier)[2:] for r in lines if not r.marker or r.marker.evaluate(environment)
    }
    own = {"cuda-python", "numpy"} if target.python == "3.10" else {"cuda-bindings"}
    for name in set(pins) - own:
        assert pins[name] == constraints[name], name
    for entry in map(Requirement, installed_dependencies()):
        assert entry.specifier.contains(pins[entry.name]), entry
    bindings = pins.get("cuda-python") or pins["cuda-bindings"]
    assert bindings.split(".")[:2] == str(target.cuda).split(".")


def test_a_clone_that_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", [])
    with refused("installation-missing", "pip install -e"):
        runtime_wheel()


def test_the_wheel_needs_what_the_project_says() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    listed = re.findall(r'"([^"]+)"', text.split("\ndependencies = [", 1)[1].split("]", 1)[0])
    assert sorted(installed_dependencies()) == sorted(listed)


@pytest.fixture(scope="session")
def wheel(unpacked: Path) -> Path:
    return unpacked / "wheels" / wheel_name()


def test_the_wheel_holds_the_runtime_and_the_plugin_sources_only(wheel: Path) -> None:
    inside = zipfile.ZipFile(wheel).namelist()
    for folder in ("runtime", "plugins", "models"):
        for path in (ROOT / folder).rglob("*.py"):
            name = path.relative_to(ROOT).as_posix()
            left_out = name.startswith(("models/demo/trainer/", "runtime/lab/"))
            assert (f"divprune_edge/{name}" in inside) != left_out, name
    for path in (ROOT / "plugins/csrc").rglob("*.c*"):
        assert f"divprune_edge/{path.relative_to(ROOT).as_posix()}" in inside
    assert not [name for name in inside if re.search(r"/export/|safetensors|__pycache__|\.so$", name)]
    assert {name.split("/")[0] for name in inside} == {
        "divprune_edge",
        "divprune_edge_runtime-0.1.0.dist-info",
        "plugins.py",
        "runtime.py",
    }


def test_the_wheel_asks_for_no_torch(wheel: Path) -> None:
    text = zipfile.ZipFile(wheel).read("divprune_edge_runtime-0.1.0.dist-info/METADATA").decode()
    needed = re.findall(r"^Requires-Dist: ([\w-]+)", text, re.MULTILINE)
    assert sorted(needed) == [
        "filelock",
        "jinja2",
        "numpy",
        "pillow",
        "pydantic",
        "rich",
        "tokenizers",
        "typer",
    ]


def test_nothing_in_the_wheel_imports_what_is_not_there(wheel: Path) -> None:
    """But for the command lines, which ask first."""
    with zipfile.ZipFile(wheel) as files:
        inside = {name for name in files.namelist() if name.endswith(".py")}
        modules = {name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in inside}
        for name in inside - {"divprune_edge/cli.py", "divprune_edge/runtime/cli.py"}:
            for node in ast.walk(ast.parse(files.read(name))):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("divprune_edge"):
                    assert node.module in modules, (name, node.module)


def test_the_wheel_is_the_same_bytes_every_time(wheel: Path) -> None:
    assert runtime_wheel() == wheel.read_bytes()


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a fresh environment that has the wheel."""
    folder = tmp_path_factory.mktemp("fresh") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin/python"
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "--quiet",
        "--no-index",
        "--no-deps",
    ]
    subprocess.run([*pip, str(wheel)], check=True)
    return python


def run_installed(python: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # The dependencies are those of the tests; .pth files, so the clone, do not count on PYTHONPATH.
    import numpy

    packages = str(Path(numpy.__file__).parent.parent)
    return subprocess.run(
        [str(python), *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": packages, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_wheel_in_a_fresh_environment(installed: Path, unpacked: Path, tmp_path: Path) -> None:
    where = run_installed(installed, tmp_path, "-c", "import divprune_edge; print(divprune_edge.__path__)")
    assert str(installed.parent.parent) in where.stdout
    info = run_installed(installed, unpacked, "-m", "runtime", "info", "bundle")
    assert info.returncode == 0, info.stderr
    assert "576 of 576" in info.stdout
    plugin = run_installed(installed, unpacked, "-m", "plugins", "info")
    assert_told(plugin.returncode, plugin.stderr, "plugin-missing", "python -m plugins build")
    export = run_installed(installed, unpacked, "-m", "divprune_edge", "export", "--help")
    assert_told(export.returncode, export.stderr, "usage", "'export'")


LAB = [
    *(("runtime", name, "bundle", "--anything", "x") for name in LAB_COMMANDS),
    ("runtime", "ask", "bundle", "What?", "--image", "selftest/picture.png", "--show-kept", "kept.png"),
]


@pytest.mark.parametrize("arguments", LAB, ids=lambda arguments: arguments[1])
def test_the_lab_is_not_on_a_board(installed: Path, unpacked: Path, arguments: tuple[str, ...]) -> None:
    result = run_installed(installed, unpacked, "-m", *arguments)
    assert result.returncode == 2
    assert result.stderr.startswith("error[lab-not-installed]: '")
    assert "pip install -e '.[cpu]' in its clone" in result.stderr
    assert result.stderr.count("\n") == 1


def test_the_command_line_without_the_lab(installed: Path, unpacked: Path) -> None:
    text = run_installed(installed, unpacked, "-m", "runtime", "--help").stdout
    assert text.count("For a workstation: not installed here.") == len(LAB_COMMANDS)
    question = ["--image", "selftest/picture.png", "What is in the picture?", "--json"]
    answer = run_installed(installed, unpacked, "-m", "runtime", "ask", "bundle", *question)
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout)["timings_ms"]


def test_the_names_of_the_lab() -> None:
    own = {"ask", "batch", "build", "info", "serve", "triton"}
    assert set(typer.main.get_command(runtime_app).list_commands(None)) - own == set(LAB_COMMANDS)


def test_without_setuptools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("divprune_edge.export.package.wheel.find_spec", lambda name: None)
    with refused("setuptools-missing", "'pip install setuptools'"):
        runtime_wheel()


def test_setuptools_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = "import sys; sys.exit('of another time')"
    monkeypatch.setattr("divprune_edge.export.package.wheel._BUILD", broken)
    with refused("wheel-failed", "(of another time)", "'pip install --upgrade setuptools'"):
        runtime_wheel()


class Stopped(BaseException):
    """Like Ctrl-C."""


@pytest.mark.parametrize("error", [Stopped(), OSError(28, "No space left on device")])
def test_an_interrupted_package_leaves_nothing(bundle: Path, tmp_path: Path, error: BaseException) -> None:
    def on_file(name: str) -> None:
        if name == WEIGHTS:
            raise error

    output = tmp_path / "package.tar"
    with pytest.raises((Stopped, UserError)):
        write_package(bundle, ORIN, output, force=False, report=Silent(on_file))
    assert list(tmp_path.iterdir()) == []


def test_an_older_package_stays_until_the_new_one_is_whole(bundle: Path, tmp_path: Path) -> None:
    def on_file(name: str) -> None:
        raise Stopped

    output = tmp_path / "package.tar"
    output.write_text("older")
    with pytest.raises(Stopped):
        write_package(bundle, ORIN, output, force=True, report=Silent(on_file))
    assert output.read_text() == "older"


def test_a_file_that_changed_since_the_export(bundle: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle, tmp_path / "demo")
    path = copy / "language_model.data"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    output = tmp_path / "package.tar"
    with refused("bundle-file-changed", "language_model.data"):
        write_package(copy, ORIN, output, force=False, report=Silent())
    path.unlink()
    with refused("bundle-file-changed", "language_model.data"):
        write_package(copy, ORIN, output, force=False, report=Silent())
    assert list(tmp_path.iterdir()) == [copy]


def test_no_room(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(archives, "shutil", type("Full", (), {"disk_usage": lambda path: usage}))
    with refused("disk-too-full", "0 MiB"):
        write_package(bundle, ORIN, tmp_path / "package.tar", force=False, report=Silent())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("target", "said"),
    [(None, "no target was given"), (find_target("h100"), "'h100' is not one")],
)
def test_a_package_is_for_a_jetson(target: Target | None, said: str, tmp_path: Path) -> None:
    with refused("package-target-unfit", said, "--target", "orin-nano-8gb"):
        check_package(target, tmp_path / "package.tar", force=False)


def test_a_package_that_is_there(tmp_path: Path) -> None:
    output = tmp_path / "package.tar"
    output.touch()
    with refused("output-exists", "--force"):
        check_package(ORIN, output, force=False)
    assert check_package(ORIN, output, force=True) is ORIN
    with refused("output-exists"):
        check_package(ORIN, tmp_path, force=True)


def test_a_bundle_in_another_dialect(demo_bundle: Path, tmp_path: Path) -> None:
    with refused("dialect-with-target", "'portable'", "'decomposed'", "--target agx-orin-64gb"):
        write_package(demo_bundle, ORIN, tmp_path / "package.tar", force=False, report=Silent())


@pytest.mark.parametrize("name", ["thor", "agx-orin-64gb-jp7"])
def test_a_bundle_for_another_device(bundle: Path, tmp_path: Path, name: str) -> None:
    with refused("target-mismatch", "Jetson AGX Orin 64GB, JetPack 6.2", f"--target {name}"):
        write_package(bundle, find_target(name), tmp_path / "p.tar", force=False, report=Silent())


def test_a_smaller_board_of_the_same_kind(bundle: Path, tmp_path: Path) -> None:
    output = tmp_path / "package.tar"
    write_package(bundle, find_target("orin-nano-8gb"), output, force=False, report=Silent())
    assert output.is_file()


def test_what_the_older_tensorrt_reads_the_newer_reads_too(bundle: Path, tmp_path: Path) -> None:
    """Where the bundle was exported with --dialect decomposed and no target."""
    copy = shutil.copytree(bundle, tmp_path / "demo", copy_function=os.link)
    manifest = read_manifest(bundle).model_copy(update={"target": None})
    (copy / "manifest.json").unlink()
    (copy / "manifest.json").write_text(manifest.to_json())
    output = tmp_path / "package.tar"
    write_package(copy, find_target("thor"), output, force=False, report=Silent())
    assert output.is_file()


def test_the_command(bundle: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle, tmp_path / "demo")
    result = run_module("export", "package", str(copy), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "tar -xf demo-agx-orin-64gb.tar" in result.stdout
    assert (tmp_path / "demo-agx-orin-64gb.tar").is_file()
    again = run_module("export", "package", str(copy), cwd=tmp_path)
    assert_told(again.returncode, again.stderr, "output-exists", "demo-agx-orin-64gb.tar")


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        ((), "package-target-unfit", "no target"),
        (("--target", "h100"), "package-target-unfit", "'h100'"),
        (("--target", "thor"), "output-exists", "demo-thor.tar"),
    ],
)
def test_nothing_is_exported_that_cannot_be_packed(
    options: tuple[str, ...], code: str, said: str, tmp_path: Path
) -> None:
    (tmp_path / "demo-thor.tar").touch()
    result = run_module("export", "llava", "--package", "--output", "demo", *options, cwd=tmp_path)
    assert_told(result.returncode, result.stderr, code, said)
    assert [path.name for path in tmp_path.iterdir()] == ["demo-thor.tar"]


def test_an_unknown_target(bundle: Path) -> None:
    with refused("target-unknown", "agx-orin-64gb"):
        package_bundle(bundle, "agx-orin", None, force=False, report=ConsoleReporter())
