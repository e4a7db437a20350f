"""Building: what is found, what is missing and how that is said, and what comes out."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from conftest import run_module
from plugins_emulation import need
from raising import assert_told, failed, refused

from divprune_edge import __version__
from divprune_edge.console import run
from divprune_edge.plugins import abi, toolchain
from divprune_edge.plugins.build import build
from divprune_edge.plugins.cli import app
from divprune_edge.plugins.loader import Library
from divprune_edge.plugins.record import ABI_VERSION, LIBRARY, record_of
from divprune_edge.plugins.toolchain import (
    Compiler,
    Headers,
    OnnxRuntimeHeaders,
    choose_architectures,
    find_compiler,
    find_headers,
    find_onnxruntime,
)

pytestmark = pytest.mark.xdist_group("emulated")
COMPILER = Compiler(Path("/cuda/bin/nvcc"), "13.0", (75, 80, 87, 90, 120))
# What this project promises to build for, with a compiler that knows them.
PROMISED = {75, 80, 86, 87, 89, 90, 100, 103, 110, 120, 121}


def write_headers(folder: Path, version: str, style: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "NvInfer.h").write_text("// a stand-in\n")
    lines = []
    for part, number in zip(("MAJOR", "MINOR", "PATCH"), version.split("."), strict=True):
        lines.append(
            f"#define NV_TENSORRT_{part} {number} //!< x"
            if style == "old"
            else f"#define TRT_{part}_ENTERPRISE {number}\n#define NV_TENSORRT_{part} TRT_{part}_ENTERPRISE //!< x"
        )
    (folder / "NvInferVersion.h").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine without headers: no variable, no system folder."""
    for variable in (
        toolchain.TENSORRT_VARIABLE,
        toolchain.ONNXRUNTIME_VARIABLE,
        toolchain.EDGE_LLM_VARIABLE,
    ):
        monkeypatch.delenv(variable, raising=False)
    for folders in ("_HEADER_FOLDERS", "_ONNXRUNTIME_FOLDERS"):
        monkeypatch.setattr(toolchain, folders, (str(tmp_path / "system"),))
    return tmp_path


def test_headers_are_optional(bare: Path) -> None:
    assert find_headers(None) is None


@pytest.mark.parametrize(("style", "version"), [("old", "10.3.0"), ("new", "11.1.2")])
def test_headers_where_jetpack_puts_them(bare: Path, style: str, version: str) -> None:
    write_headers(bare / "system", version, style)
    headers = find_headers(None)
    assert headers is not None
    assert (headers.folder, headers.version) == (bare / "system", version)


def test_old_headers_of_the_system_are_passed_over(bare: Path) -> None:
    write_headers(bare / "system", "8.6.2", "old")
    assert find_headers(None) is None


def test_named_headers(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = write_headers(bare / "named", "10.3.0", "old")
    assert find_headers(named).folder == named  # type: ignore[union-attr]
    monkeypatch.setenv(toolchain.TENSORRT_VARIABLE, str(named))
    assert find_headers(None).folder == named  # type: ignore[union-attr]
    with refused("tensorrt-headers-missing", "NvInfer.h"):
        find_headers(bare)
    old = write_headers(bare / "old", "8.6.2", "old")
    with refused("tensorrt-headers-too-old", "8.6.2", 10):
        find_headers(old)
    (named / "NvInferVersion.h").write_text("nothing\n")
    with refused("tensorrt-headers-missing", "NvInfer.h"):
        find_headers(named)


def write_onnxruntime(folder: Path, api: int) -> Path:
    folder.mkdir(parents=True)
    (folder / "onnxruntime_c_api.h").write_text(f"// a stand-in\n#define ORT_API_VERSION {api}\n")
    return folder


def test_the_header_of_onnxruntime(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_onnxruntime(None) is None
    write_onnxruntime(bare / "system", 17)
    assert find_onnxruntime(None) is None, "an old one of the system is passed over"
    named = write_onnxruntime(bare / "named", 18)
    assert find_onnxruntime(named) == OnnxRuntimeHeaders(named, 18)
    monkeypatch.setenv(toolchain.ONNXRUNTIME_VARIABLE, str(named))
    assert find_onnxruntime(None) == OnnxRuntimeHeaders(named, 18)
    with refused("onnxruntime-headers-missing", bare, "onnxruntime_c_api.h"):
        find_onnxruntime(bare)
    with refused("onnxruntime-headers-too-old", "1.17", "1.18"):
        find_onnxruntime(bare / "system")


def test_the_operators_alone_need_no_nvcc(
    bare: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And a build that finds neither says what it lacks."""
    asked: list[object] = []
    monkeypatch.setattr("divprune_edge.plugins.build.build", lambda *given, **named: asked.append(given[0]))
    monkeypatch.setattr(toolchain, "_compiler", lambda: bare / "nvcc")
    monkeypatch.delenv("CUDACXX", raising=False)
    header = str(write_onnxruntime(bare / "named", 30))
    ended = []
    for options in (["--onnxruntime-include", header], [], ["--onnxruntime-include", header, "--arch", "87"]):
        with pytest.raises(SystemExit) as code:
            run(app, ["build", *options, "--output", str(bare)], program="plugins")
        ended.append(code.value.code)
    assert (ended, asked) == ([0, 2, 2], [None])
    printed = capsys.readouterr()
    assert "ONNX Runtime operators: yes, for CPU\n" in printed.out
    assert printed.err.count("error[compiler-missing]") == 2


@pytest.mark.parametrize(
    ("wanted", "chosen"), [("87", (87,)), ("90,87", (87, 90)), ("sm_87, 9.0", (87, 90)), ("87,87", (87,))]
)
def test_architectures(wanted: str, chosen: tuple[int, ...]) -> None:
    assert choose_architectures(wanted, COMPILER) == chosen


@pytest.mark.parametrize("wanted", ["72", "orin", "", "87,", "87;90", "1000"])
def test_wrong_architectures(wanted: str) -> None:
    with refused("architecture-unsupported", "13.0", "75, 80, 87, 90, 120"):
        choose_architectures(wanted, COMPILER)


def test_architectures_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain, "local_architectures", lambda: (87,))
    assert choose_architectures(None, COMPILER) == (87,)
    monkeypatch.setattr(toolchain, "local_architectures", lambda: ())
    assert choose_architectures(None, COMPILER) == COMPILER.architectures


def test_a_missing_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDACXX", "/nowhere/nvcc")
    with refused("compiler-missing", "CUDACXX"):
        find_compiler()
    monkeypatch.setenv("CUDACXX", "/bin/true")
    with refused("compiler-not-nvcc", "/bin/true", "CUDACXX"):
        find_compiler()
    monkeypatch.setenv("CUDACXX", "/bin/false")
    with refused("compiler-failed", "/bin/false --version"):
        find_compiler()


def test_a_missing_cmake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(toolchain.shutil, "which", lambda name: None)
    with refused("cmake-missing"):
        build(COMPILER, None, (87,), tmp_path)


def test_a_cmake_that_does_not_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As pip's in an environment that was moved: its first line names a Python that is gone."""
    cmake = tmp_path / "cmake"
    cmake.write_text("#!/nowhere/python\n")
    cmake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with refused("build-tool-not-starting", f"'{cmake}'"):
        build(COMPILER, None, (87,), tmp_path / "lib")
    assert not list((tmp_path / "lib").iterdir())


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    need("cmake")
    (tmp_path / "file").write_text("")
    with refused("output-unwritable", "--output"):
        build(COMPILER, None, (87,), tmp_path / "file" / "lib")


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    need("cmake")
    with failed("build-failed", "--verbose"):
        build(COMPILER, None, (87,), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_is_built(built: Library) -> None:
    folder = built.path.parent
    assert sorted(path.name for path in folder.iterdir()) == sorted([LIBRARY, record_of(Path(LIBRARY)).name])
    record = json.loads(record_of(folder / LIBRARY).read_text())
    assert record["version"] == __version__
    assert (record["abi"], record["architectures"], record["tensorrt"]) == (ABI_VERSION, [87], None)
    symbols = subprocess.run(
        [need("nm"), "-D", "--defined-only", built.path], capture_output=True, text=True, check=True
    ).stdout
    names = {line.split()[-1] for line in symbols.splitlines()}
    assert {"divprune_max_min", "divprune_append_rows"} <= names
    assert all(name.startswith("divprune_") for name in names), "only the C interface is visible"
    needed = subprocess.run(
        [need("readelf"), "-d", built.path], capture_output=True, text=True, check=True
    ).stdout
    assert "libcudart" not in needed, "the CUDA runtime is linked in"


def test_info_of_what_is_built(built: Library) -> None:
    result = run_module("plugins", "info", "--library", str(built.path.parent))
    assert result.returncode == 0, result.stderr
    assert "sm_87" in result.stdout
    assert "not built in" in result.stdout


def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    result = run_module(
        "plugins", "build", "--tensorrt-include", str(tmp_path), "--output", str(tmp_path / "o")
    )
    assert_told(result.returncode, result.stderr, "tensorrt-headers-missing", tmp_path)
    assert result.stderr.count("\n") == 1
    result = run_module("plugins", "info", "--library", str(tmp_path))
    assert_told(result.returncode, result.stderr, "plugin-missing", "python -m plugins build")
    long = "x" * 300
    result = run_module("plugins", "info", "--library", long)
    assert_told(result.returncode, result.stderr, "path-too-long", long)


def test_the_command_passes_on_what_was_asked(
    bare: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command line around the build, without the build."""
    headers = write_headers(bare / "headers", "11.1.2", "new")
    asked: dict[str, object] = {}

    def pretend(
        compiler: Compiler, found: Headers, architectures: tuple[int, ...], output: Path, **options: object
    ) -> None:
        asked.update(options, headers=found.version, architectures=architectures, output=output)
        options["show"]("a line of nvcc")  # type: ignore[operator]

    monkeypatch.setattr("divprune_edge.plugins.build.build", pretend)
    monkeypatch.setattr(toolchain, "find_compiler", lambda: COMPILER)
    options = ["--tensorrt-include", str(headers), "--arch", "90,87", "--output", str(bare), "--jobs", "3"]
    for verbose in ([], ["--verbose"]):
        with pytest.raises(SystemExit) as ended:
            run(app, ["build", *options, *verbose], program="plugins")
        assert ended.value.code == 0
        output = capsys.readouterr().out
        assert ("a line of nvcc" in output) == bool(verbose)
        assert "TensorRT plugin: yes, for TensorRT 11 (headers 11.1.2)" in output
        assert "ONNX Runtime operators: no, because onnxruntime_c_api.h was not found" in output
    assert (asked["jobs"], asked["headers"], asked["architectures"]) == (3, "11.1.2", (87, 90))
    assert asked["output"] == bare


@pytest.mark.slow
@pytest.mark.parametrize("name", ["append_rows.cu", "max_min.cu", "onnxruntime/seeds.cu"])
def test_every_architecture_compiles(name: str) -> None:
    """Each promised architecture on its own, by the compiler's front end and assembler; nothing is linked."""
    need("nvcc")
    compiler = find_compiler()
    if int(compiler.version.split(".", maxsplit=1)[0]) < 13:
        pytest.skip(f"nvcc {compiler.version} does not know all architectures")
    assert set(compiler.architectures) >= PROMISED
    said = what_ptxas_says(compiler, name, [str(a) for a in sorted(PROMISED)])
    spilling = re.findall(
        r"'(\w+)' for 'sm_(\d+)'[^']*?(\d+) bytes spill stores", said.replace("Function properties for", "")
    )
    # Picks of more than 16,384 candidates have eight vectors a thread, which no GPU holds in registers; and sm_75 takes
    # no large tiles.
    spills = {
        (int(architecture), int(size))
        for kernel, architecture, size in spilling
        if int(size) > 0
        and not ("pick_kernel" in kernel and "Li8E" in kernel)
        and not ("Li128E" in kernel and architecture == "75")
    }
    assert all(size <= (0 if 80 <= architecture <= 90 else 32) for architecture, size in spills), spills
    assert spilling


@pytest.mark.slow
def test_what_only_hopper_has_compiles(tmp_path: Path) -> None:
    """Products that wait for each other would show here, and so would sums that are not in registers."""
    need("nvcc")
    compiler = find_compiler()
    unit = tmp_path / "hopper.o"
    said = what_ptxas_says(compiler, "hopper.cu", ["90a"], unit)
    assert re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", said) == [("0", "0")] * 2
    assert "serialized" not in said
    assert "Performance Loss" not in said
    reader = compiler.path.with_name("cuobjdump")
    if reader.is_file():
        code = subprocess.run([reader, "-sass", unit], capture_output=True, text=True, check=True).stdout
        assert len(re.findall(r"HGMMA\.64x256x16\.F32", code)) == 2 * 4, "two types, a step of 64 values each"


@pytest.mark.slow
def test_a_library_for_hopper_has_it(built: Library, tmp_path: Path) -> None:
    """Beside the code for sm_90 that later GPUs can run, too; a library for other GPUs does without."""
    build(find_compiler(), None, (90,), tmp_path)
    kernel = b"wgmma_distances_kernel"
    assert kernel in (tmp_path / LIBRARY).read_bytes()
    assert kernel not in built.path.read_bytes()
    abi.load(tmp_path / LIBRARY)


def what_ptxas_says(
    compiler: Compiler, name: str, architectures: list[str], unit: Path = Path(os.devnull)
) -> str:
    source = Path(__file__).resolve().parents[2] / "plugins" / "csrc" / name
    targets = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in architectures]
    command = [compiler.path, "-std=c++17", "-O3", "-Werror", "all-warnings", "-Xptxas", "-v", *targets]
    result = subprocess.run(
        ["nice", *command, "-c", "-o", unit, source], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stderr
