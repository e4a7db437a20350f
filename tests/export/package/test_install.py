"""install.sh: its steps, its dry run, and every way in which a board can be wrong, on a fake board."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FAKE = Path(__file__).with_name("fake_board.sh")
TOOLS = ("uname", "dpkg-query", "head", "nvcc", "cmake", "c++", "df", "free", "nvpmodel", "python3")
STEPS = [
    "Files",
    "Architecture",
    "JetPack",
    "CUDA",
    "TensorRT",
    "Build tools",
    "Python",
    "Disk",
    "Memory",
    "Power mode",
    "Bundle",
    "Environment",
    "Packages",
    "Plugin",
    "Engines",
    "Self-test",
]


class Board:
    """An unpacked package on a board whose tools are fake."""

    def __init__(self, package: Path, tools: Path, expected: dict[str, object]) -> None:
        self.package = package
        self.log = tools / "calls.log"
        self.environment = {
            "PATH": f"{tools}:/usr/bin:/bin",
            "HOME": str(tools),
            "FAKE_LOG": str(self.log),
            "FAKE_ANSWER": json.dumps(
                {
                    "answer": expected["answer"],
                    "token_ids": expected["token_ids"],
                    "timings_ms": {"vision": 3.1, "total": 9.2},
                }
            ),
            "REAL_PYTHON": sys.executable,
        }
        self.python = tools / "python3"

    def install(self, *options: str, **settings: str) -> subprocess.CompletedProcess[str]:
        """Run install.sh with FAKE_… settings."""
        self.log.unlink(missing_ok=True)
        fakes = {f"FAKE_{name.upper()}": value for name, value in settings.items()}
        return subprocess.run(
            [str(self.package / "install.sh"), "--python", str(self.python), *options],
            env=self.environment | fakes,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    @property
    def calls(self) -> str:
        return self.log.read_text() if self.log.exists() else ""


@pytest.fixture
def board(unpacked: Path, tmp_path: Path) -> Board:
    package = tmp_path / "package"
    shutil.copytree(unpacked, package, copy_function=os.link)
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in TOOLS:
        (tools / name).symlink_to(FAKE)
    return Board(package, tools, json.loads((unpacked / "selftest/expected.json").read_text()))


def steps(output: str) -> list[str]:
    found = re.findall(r"^\[(\d+)/16\] ([^:]+):", output, re.MULTILINE)
    assert [int(number) for number, _ in found] == list(range(1, len(found) + 1))
    return [name for _, name in found]


def left(package: Path) -> set[str]:
    """Names in the package's folder that were not packed."""
    packed = {
        line.split("  ", 1)[1].split("/")[0] for line in (package / "SHA256SUMS").read_text().splitlines()
    }
    return {path.name for path in package.iterdir()} - packed - {"SHA256SUMS"}


def test_the_dry_run_prints_every_step_and_runs_none(unpacked: Path, tmp_path: Path) -> None:
    empty = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    before = sorted(unpacked.rglob("*"))
    result = subprocess.run(
        [str(unpacked / "install.sh"), "--dry-run"], env=empty, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert steps(result.stdout) == STEPS
    assert "Dry run: nothing was run." in result.stdout
    for command in (
        "-m venv --system-site-packages",
        "-m plugins build",
        "-m runtime build",
        "-m runtime ask",
    ):
        assert command in result.stdout
    assert sorted(unpacked.rglob("*")) == before


def test_the_dry_run_calls_no_tool_of_the_board(board: Board) -> None:
    assert board.install("--dry-run").returncode == 0
    assert board.calls == ""


def test_from_nothing_to_the_answer(board: Board) -> None:
    result = board.install("--yes")
    assert result.returncode == 0, result.stderr
    assert steps(result.stdout) == STEPS
    assert "The board answers 'purple', as recorded." in result.stdout
    assert "It took, in ms: vision 3, total 9 (" in result.stdout
    assert "runtime profile" not in board.calls  # it is not in the board's wheel
    assert "Installed. Ask: " in result.stdout
    assert left(board.package) == {"venv", ".files-checked", "selftest.json"}


def test_what_is_done_is_not_done_again(board: Board) -> None:
    assert board.install("--yes").returncode == 0
    result = board.install("--yes")
    assert result.returncode == 0, result.stderr
    assert steps(result.stdout) == STEPS
    for command in ("venv", "pip install", "plugins build", "runtime build"):
        assert f"-m {command}" not in board.calls
    assert "sha256sum" not in result.stdout
    assert result.stdout.count("note: already there") == 5


def test_after_a_failure_it_goes_on(board: Board) -> None:
    assert board.install("--yes", engines="none").returncode == 1
    result = board.install("--yes")
    assert result.returncode == 0, result.stderr
    assert "-m pip" not in board.calls


def test_another_folder(board: Board, tmp_path: Path) -> None:
    result = board.install("--yes", "--prefix", str(tmp_path / "a place"))
    assert result.returncode == 0, result.stderr
    assert left(board.package) == set()
    assert {path.name for path in (tmp_path / "a place").iterdir()} == {
        ".files-checked",
        "bundle",
        "selftest.json",
        "venv",
    }
    assert (tmp_path / "a place/bundle/manifest.json").samefile(board.package / "bundle/manifest.json")


def test_packages_from_a_folder(board: Board) -> None:
    (board.package / "wheelhouse").mkdir()
    assert board.install("--yes").returncode == 0
    assert f"--no-index --find-links {board.package}/wheelhouse" in board.calls


WRONG = {
    "architecture": ({"machine": "x86_64"}, "This machine is 'x86_64'", "--dry-run"),
    "no JetPack": ({"l4t": "none"}, "No Jetson Linux was found", "flash the board with JetPack 6.2"),
    "the other JetPack": ({"l4t": "39.2.0-20260601"}, "Jetson Linux 39.2.0", "--target agx-orin-64gb-jp7"),
    "an old JetPack": ({"l4t": "35.5.0-20240613"}, "Jetson Linux 35.5.0", "flash JetPack 6.2"),
    "no package, old release": (
        {"l4t": "none", "release": "# R35 (release), REVISION: 5.0, GCID: 1"},
        "Jetson Linux 35.5.0",
        "flash",
    ),
    "no nvcc": ({"nvcc": "none"}, "nvcc was not found", "nvidia-jetpack"),
    "no nvcc either": ({"nvcc": "hello"}, "does not behave like nvcc", "CUDACXX"),
    "another CUDA": (
        {"nvcc": "release 13.2, V13.2"},
        "nvcc is of CUDA 13.2",
        "/usr/local/cuda-12.6/bin/nvcc",
    ),
    "no TensorRT": ({"tensorrt": "none"}, "Python sees no TensorRT", "python3-libnvinfer"),
    "an old TensorRT": ({"tensorrt": "8.6.2 /usr/lib/python3.10/dist-packages/t"}, "TensorRT 8.6.2", "10.3"),
    "a newer TensorRT": (
        {"tensorrt": "10.16.2.10 /usr/lib/python3.12/dist-packages/t"},
        "TensorRT 10.16.2.10, but the bundle was exported for 10.3",
        "--target agx-orin-64gb-jp7",
    ),
    "no headers": ({"headers": "none"}, "headers are missing", "libnvinfer-headers-dev"),
    "no cmake": ({"cmake": "none"}, "cmake is missing", "apt install cmake"),
    "no compiler": ({"compiler": "none"}, "C++ compiler is missing", "build-essential"),
    "another Python": ({"python": "3.12"}, "is Python 3.12", "--python"),
    "no venv": ({"venv": "none"}, "cannot make environments", "python3-venv"),
    "a full disk": ({"disk": "1000"}, "has 0 MiB free", "--prefix"),
    "a small board": ({"memory": "5000000"}, "of memory, but the largest graph", "--precision"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_board_that_does_not_fit(board: Board, case: str) -> None:
    settings, what, remedy = WRONG[case]
    result = board.install("--yes", **settings)
    assert result.returncode == 2
    assert_one_sentence(result.stderr, what, remedy)
    assert left(board.package) == set()
    assert "-m venv" not in board.calls


FAILING = {
    "venv": ({"make_venv": "none"}, "environment could not be made", "python3-venv", 2),
    "pip": ({"pip": "none"}, "pip could not install", "--wheelhouse", 2),
    "imports": ({"imports": "none"}, "does not see everything", "JetPack's Python", 2),
    "plugin": ({"build": "none"}, "The plugin was not built", "--verbose", 1),
    "plugin without headers": (
        {"plugin": "not built in"},
        "without TensorRT's headers",
        "TENSORRT_INCLUDE_DIR",
        1,
    ),
    "engines": ({"engines": "none"}, "The engines were not built", "swap", 1),
    "no answer": ({"answer": "none"}, "gives no answer", "message above", 1),
    "another answer": (
        {"answer": '{"answer": "red", "token_ids": [3, 2]}'},
        "the board answers 'red', but 'purple' was recorded",
        "build the engines again",
        1,
    ),
}


@pytest.mark.parametrize("case", FAILING)
def test_a_step_that_fails(board: Board, case: str) -> None:
    settings, what, remedy, code = FAILING[case]
    result = board.install("--yes", **settings)
    assert result.returncode == code
    assert what in result.stderr
    assert_one_sentence(result.stderr.splitlines()[-1] + "\n", "", remedy)
    environment = board.package / "venv"
    assert environment.exists() == (code == 1)  # a half-made environment is not left


def assert_one_sentence(error: str, what: str, remedy: str) -> None:
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert what in error
    assert remedy in error


def test_a_damaged_file(board: Board) -> None:
    path = board.package / "bundle/tokenizer.json"
    content = path.read_bytes()
    path.unlink()  # a hard link: the other tests' file stays
    path.write_bytes(content[:-1] + b"?")
    result = board.install("--yes")
    assert result.returncode == 2
    assert "bundle/tokenizer.json: FAILED" in result.stdout
    assert "error: The package is damaged" in result.stderr
    assert "uname" not in board.calls


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"available": "1000000000"}, "add a swap file"),
        ({"power": "NV Power Mode: 15W"}, "not the board's fastest mode"),
        ({"power": "none"}, "could not be read"),
        ({"tensorrt": "10.3.0 /home/me/.local/lib/tensorrt/__init__.py"}, "is not JetPack's"),
    ],
)
def test_advice_stops_nothing(board: Board, settings: dict[str, str], said: str) -> None:
    result = board.install("--yes", **settings)
    assert result.returncode == 0, result.stderr
    assert said in result.stdout


def test_enough_swap_needs_no_advice(board: Board) -> None:
    result = board.install("--yes", available="1000000000", swap="16000000000")
    assert "swap file" not in result.stdout


def test_nobody_to_ask(board: Board) -> None:
    result = board.install()
    assert result.returncode == 2
    assert_one_sentence(result.stderr, "nobody to ask", "--yes")
    assert left(board.package) == set()


@pytest.mark.parametrize("options", [("--nope",), ("--prefix",), ("--yes", "--wheelhouse", "/nowhere")])
def test_a_wrong_command_line(board: Board, options: tuple[str, ...]) -> None:
    result = board.install(*options)
    assert result.returncode == 2
    assert_one_sentence(result.stderr, options[-1], "")
    assert board.calls == ""
