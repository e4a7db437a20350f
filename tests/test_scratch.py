"""Work in progress: one process at a time, nothing lost, and what the dead left behind is removed. Real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from conftest import ROOT, run_module
from raising import failed, refused

from divprune_edge.manifest import read_manifest
from divprune_edge.scratch import give_way, scratch

ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"}


@contextmanager
def working(code: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Run Python code that prints a line when it is in the middle of something, and sleeps; killed at the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", code + "\nprint('in the middle', flush=True)\nimport time\ntime.sleep(1000)"]
        + [str(argument) for argument in arguments],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "in the middle\n"
        yield process
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()


def start(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", *map(str, arguments)],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


STAGED = """
import sys
from pathlib import Path
from divprune_edge.export.writer import staged
block = staged(Path(sys.argv[1]))
(block.__enter__() / "language_model.data").write_bytes(bytes(1 << 20))
"""

REPLACING = """
import sys
from pathlib import Path
from divprune_edge.scratch import give_way, scratch
output = Path(sys.argv[1])
block = scratch(output.parent, output.name, busy="busy")
give_way(output, block.__enter__())
"""

INSIDE = """
import sys
from pathlib import Path
from divprune_edge.scratch import scratch
block = scratch(Path(sys.argv[1]), sys.argv[2], busy="busy")
(block.__enter__() / "big").write_bytes(bytes(1 << 20))
"""


def test_a_folder_is_empty_and_gone_at_the_end(tmp_path: Path) -> None:
    with scratch(tmp_path, "one", busy="busy") as work:
        assert not list(work.iterdir())
        assert work.is_relative_to(tmp_path)
        with refused("output-in-use", "busy"), scratch(tmp_path, "one", busy="busy"):
            pass
        with scratch(tmp_path, "two", busy="busy"):
            pass
        assert work.is_dir()
    assert not list(tmp_path.iterdir())


def test_what_gives_way_goes_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    with scratch(tmp_path, "old", busy="busy") as work:
        assert give_way(tmp_path / "old", work).is_dir()
        assert not (tmp_path / "old").exists()
    assert not list(tmp_path.iterdir())


def test_a_killed_process_leaves_nothing_for_long_and_a_living_one_is_left_alone(tmp_path: Path) -> None:
    with working(STAGED, tmp_path / "alive"):
        with working(STAGED, tmp_path / "dead"):
            pass
        assert len(list(tmp_path.iterdir())) == 2
        with scratch(tmp_path, "another", busy="busy"):
            pass
        (left,) = tmp_path.iterdir()
        assert left.name == ".alive.divprune"
        assert (left / "work/bundle/language_model.data").stat().st_size == 1 << 20


def test_what_was_taken_away_comes_back(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle/manifest.json").write_text("old")
    with working(REPLACING, tmp_path / "bundle"):
        assert not (tmp_path / "bundle").exists()
    with scratch(tmp_path, "another", busy="busy"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert (tmp_path / "bundle/manifest.json").read_text() == "old"


def test_folders_of_others_stay(tmp_path: Path) -> None:
    names = [".rsync.partial", ".foo.abcdefgh.partial", "plain.divprune", ".divprune.txt"]
    for name in names:
        (tmp_path / name).mkdir()
    (tmp_path / ".link.divprune").symlink_to(tmp_path / "plain.divprune")
    with scratch(tmp_path, "another", busy="busy"):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {*names, ".link.divprune"}


def test_it_holds_under_many_processes(tmp_path: Path) -> None:
    """Forty increments of a file by eight processes; some are killed in the middle."""
    (tmp_path / "number").write_text("0")
    code = """
import sys, os, time
from pathlib import Path
from divprune_edge.scratch import scratch
folder = Path(sys.argv[1])
for _ in range(5):
    with scratch(folder, "number", busy="busy", wait=True) as work:
        number = int((folder / "number").read_text())
        (work / "number").write_text(str(number + 1))
        time.sleep(0.002)
        (work / "number").replace(folder / "number")
"""
    with working(INSIDE, tmp_path, "number"):
        processes = [
            subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env=ENVIRONMENT) for _ in range(8)
        ]
        time.sleep(0.5)
    assert [process.wait() for process in processes] == [0] * 8
    assert (tmp_path / "number").read_text() == "40"
    assert [path.name for path in tmp_path.iterdir()] == ["number"]


def test_one_of_several_exports_to_a_folder_succeeds(tmp_path: Path) -> None:
    output = tmp_path / "bundle"
    processes = [start("export", "llava", "--no-verify", "--output", output) for _ in range(3)]
    ended = [(process.communicate()[1], process.returncode) for process in processes]
    assert sorted(code for _, code in ended) == [0, 2, 2], ended
    for said, code in ended:
        if code:
            assert "is being written by another process" in said or "exists already" in said
            assert said.count("\n") <= 2
    read_manifest(output)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_an_export_in_progress_is_told(tmp_path: Path) -> None:
    with working(STAGED, tmp_path / "bundle"):
        said = run_module("export", "llava", "--no-verify", "--force", "--output", str(tmp_path / "bundle"))
        assert said.returncode == 2
        assert said.stderr.splitlines()[-1].startswith("error[output-in-use]: ")
    said = run_module("export", "llava", "--no-verify", "--output", str(tmp_path / "bundle"))
    assert said.returncode == 0, said.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_selectors_that_are_added_at_a_time_are_all_there(demo_bundle: Path, tmp_path: Path) -> None:
    import shutil

    bundle = Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))
    with working(INSIDE, bundle, "selector"):  # one that is killed while the others wait for it
        kept = (7, 8, 9)
        processes = [start("export", "selector", bundle, "--keep", keep, "--no-verify") for keep in kept]
        time.sleep(1)
    for process in processes:
        assert process.communicate() and process.returncode == 0
    manifest = read_manifest(bundle)
    assert {entry.keep for entry in manifest.selectors} == {58, *kept}
    assert not list(bundle.glob(".*"))
    again = run_module("runtime", "info", str(bundle), "--verify-hashes", "always")
    assert again.returncode == 0, again.stderr


def test_a_killed_build_of_the_plugin_is_cleared_away(tmp_path: Path) -> None:
    from divprune_edge.plugins.build import build
    from divprune_edge.plugins.toolchain import Compiler

    output = tmp_path / "lib"
    output.mkdir()
    compiler = Compiler(Path("/nonexistent/nvcc"), "12.6", (87,))
    with working(INSIDE, output, "build"):
        with refused("output-in-use", f"'{output}'"):
            build(compiler, None, (87,), output)
        assert (output / ".build.divprune").is_dir()
    with failed("build-failed"):
        build(compiler, None, (87,), output)
    assert not list(output.iterdir())
