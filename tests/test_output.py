"""Full disks, closed pipes and narrow encodings: one sentence, the right exit code, nothing cut short."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, run_module

from divprune_edge.files import write_whole

COMMANDS = {
    "a streamed answer": ("runtime", "ask", "BUNDLE", "--image", "IMAGE", "What?"),
    "an answer as JSON": ("runtime", "ask", "BUNDLE", "--image", "IMAGE", "What?", "--json"),
    "tables": ("runtime", "info", "BUNDLE"),
    "JSON": ("runtime", "info", "BUNDLE", "--json"),
    "help": ("runtime", "--help"),
    "costs": ("export", "cost"),
    "a check": ("export", "check", "BUNDLE", "--target", "agx-orin-64gb", "--no-build"),
    "the version": ("divprune_edge", "--version"),
}
LOST = "error[output-lost]: Standard output cannot be written ("


def start(
    bundle: Path, image: Path, command: tuple[str, ...], shell: str = '"$@"', **environment: str
) -> subprocess.CompletedProcess[bytes]:
    """Run a command by bash; ``$@`` in ``shell`` is the command."""
    words = [{"BUNDLE": str(bundle), "IMAGE": str(image)}.get(word, word) for word in command]
    return subprocess.run(
        ["bash", "-c", shell, "bash", sys.executable, "-m", *words],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"} | environment,
        capture_output=True,
        check=False,
        timeout=120,
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk_behind_standard_output(name: str, demo_bundle: Path, image: Path) -> None:
    done = start(demo_bundle, image, COMMANDS[name], '"$@" > /dev/full')
    said = done.stderr.decode()
    assert done.returncode == 1, said
    assert said.startswith(LOST + "No space left on device): ")
    assert said.count("\n") == 1


@pytest.mark.parametrize("name", ["a streamed answer", "tables", "JSON", "help"])
def test_a_closed_standard_output(name: str, demo_bundle: Path, image: Path) -> None:
    done = start(demo_bundle, image, COMMANDS[name], '"$@" >&-')
    assert done.returncode == 1
    assert done.stderr.decode().startswith(LOST)
    assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("name", COMMANDS)
def test_a_reader_that_is_gone(name: str, demo_bundle: Path, image: Path) -> None:
    """As behind ``head``: there is nothing wrong, and nobody to tell it."""
    done = start(demo_bundle, image, COMMANDS[name], '"$@" | true; exit ${PIPESTATUS[0]}')
    assert done.stderr == b""
    assert done.returncode == 0 or name == "a check"


@pytest.mark.parametrize("place", ["2>/dev/full", "2>&-"])
def test_what_is_said_beside_the_result_may_get_lost(place: str, demo_bundle: Path, image: Path) -> None:
    done = start(demo_bundle, image, COMMANDS["a streamed answer"], f'"$@" {place}')
    assert done.returncode == 0
    assert done.stdout.strip()


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "cp1252"])
@pytest.mark.parametrize("name", COMMANDS)
def test_an_encoding_without_the_characters(name: str, encoding: str, demo_bundle: Path, image: Path) -> None:
    done = start(demo_bundle, image, COMMANDS[name], PYTHONIOENCODING=encoding)
    assert done.returncode == (1 if name == "a check" else 0), done.stderr
    assert b"Traceback" not in done.stderr
    text = done.stdout.decode(encoding)
    assert text
    if "JSON" in name:
        assert isinstance(json.loads(text), dict)


def test_json_keeps_its_characters(demo_bundle: Path, image: Path, tmp_path: Path) -> None:
    questions = tmp_path / "questions.jsonl"
    asked = {"image": str(image), "question": "What?", "note": "→ ä 中 😀"}
    questions.write_text(json.dumps(asked, ensure_ascii=False) + "\n", encoding="utf-8")
    command = ("runtime", "batch", "BUNDLE", str(questions))
    done = start(demo_bundle, image, command, PYTHONIOENCODING="latin-1")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.decode("latin-1"))["note"] == asked["note"]


def test_an_export_whose_words_get_lost_leaves_nothing(
    demo_bundle: Path, image: Path, tmp_path: Path
) -> None:
    command = ("export", "llava", "--no-verify", "--output", str(tmp_path / "bundle"))
    done = start(demo_bundle, image, command, '"$@" > /dev/full')
    assert done.returncode == 1
    assert done.stderr.decode().startswith(LOST)
    assert not list(tmp_path.iterdir())


FILES = {
    "--show-kept": ("runtime", "ask", "BUNDLE", "--image", "IMAGE", "What?", "--show-kept", "FILE.png"),
    "a page": ("runtime", "compare-selectors", "BUNDLE", "What?", "--image", "IMAGE", "-o", "FILE.html"),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_full_disk_leaves_the_older_file(kind: str, demo_bundle: Path, image: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk: creating one works, writing does not."""
    place = tmp_path / FILES[kind][-1]
    command = (*FILES[kind][:-1], str(place))
    environment = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    for older in (None, b"older"):
        if older is not None:
            place.write_bytes(older)
        done = start(demo_bundle, image, command, 'ulimit -f 0; "$@"', **environment)
        said = done.stderr.decode()
        assert done.returncode == 2, said
        assert f"'{place}' cannot be written (File too large)" in said.splitlines()[-1]
        assert (place.read_bytes() if place.exists() else None) == older
        assert {path.name for path in tmp_path.iterdir()} <= {place.name, "cache"}


def test_a_device_takes_a_page(demo_bundle: Path, image: Path) -> None:
    command = (*FILES["a page"][:-1], "/dev/full")
    done = start(demo_bundle, image, command)
    assert done.returncode == 2
    assert "'/dev/full' cannot be written (No space left on device)" in done.stderr.decode()
    done = start(demo_bundle, image, (*FILES["a page"][:-1], "/dev/stdout"))
    assert done.returncode == 0
    assert b"<!doctype html>" in done.stdout


def test_a_journal_without_a_line_begins_anew(tmp_path: Path) -> None:
    from divprune_edge.runtime.lab.evaluation.results import RECORDS, Journal

    (tmp_path / RECORDS).write_bytes(b"")
    Journal(tmp_path, {"data": "shapes"})
    assert Journal(tmp_path, {"data": "shapes"}).records == []
    (tmp_path / RECORDS).write_bytes(b'{"data": "sh')
    Journal(tmp_path, {"data": "shapes"})
    assert (tmp_path / RECORDS).read_text() == '{"data": "shapes"}\n'


def test_files_are_whole_or_not_there(tmp_path: Path) -> None:
    place = tmp_path / "page.html"
    write_whole(place, "one")
    place.chmod(0o640)
    (tmp_path / "link").symlink_to(place)
    write_whole(tmp_path / "link", "two → \udcff")
    assert (tmp_path / "link").is_symlink()
    assert place.read_text(encoding="utf-8") == "two → \\udcff"
    assert place.stat().st_mode & 0o777 == 0o640
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            write_whole(place, "x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert place.read_text(encoding="utf-8") == "two → \\udcff"
    assert {path.name for path in tmp_path.iterdir()} == {"page.html", "link"}


def test_nothing_else_writes_pages_and_images() -> None:
    """Every writer of a result goes through ``write_whole``; these write to folders that are renamed when whole."""
    staged = {
        "export/bundle.py",
        "export/package/wheel.py",
        "runtime/engines/store.py",
        "runtime/engines/builder.py",
        "runtime/engines/finish.py",
        "runtime/triton/repository.py",
    }
    found = set()
    for part in ("divprune_edge", "export", "runtime", "plugins"):
        for path in (ROOT / part).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            if ".write_text(" in text or ".write_bytes(" in text:
                found.add(path.relative_to(ROOT).as_posix())
    own = {"divprune_edge/files.py", "divprune_edge/scratch.py"}
    assert {name for name in found if not name.startswith("divprune_edge/") or name in own} == staged | own


def test_the_command_line_of_the_clone_is_as_it_was(demo_bundle: Path) -> None:
    done = run_module("runtime", "info", str(demo_bundle), "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["selectors"]
