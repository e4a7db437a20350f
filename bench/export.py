"""Memory and time of exporting a checkpoint of LLaVA-1.5-7B's size: 14.1 GB of float16 shards of random bytes.

Each precision is exported by the command in a process of its own, whose anonymous memory (RssAnon) is sampled, and
compared with a copy of the checkpoint's files on the same disk. Both start with a cold page cache where that is
permitted, and end when the data is on the disk. ``--tiny`` is a smoke test.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.random_checkpoint import CLIP_L_336, LM_7B, TINY_LM, TINY_VISION, write_random_checkpoint
from divprune_edge.files import write_whole

PRECISIONS = ("fp16", "vision=fp16,language=int4")
# What the checkpoint, a copy of it, and a bundle take at a time, in bytes per byte of the checkpoint.
SHARE_OF_DISK = 2.1
SAMPLE_SECONDS = 0.02


def main() -> None:
    """Measure, print one table, and write JSON if asked."""
    arguments = _arguments()
    vision, text = (TINY_VISION, TINY_LM | {"hidden_size": 128}) if arguments.tiny else (CLIP_L_336, LM_7B)
    check_disk(arguments.folder, 2**25 if arguments.tiny else 14 * 2**30)
    with tempfile.TemporaryDirectory(prefix="divprune-export-", dir=arguments.folder) as name:
        folder = Path(name)
        checkpoint = write_random_checkpoint(folder / "checkpoint", vision, text)
        size = sum(file.stat().st_size for file in checkpoint.iterdir())
        copied = [_copy(checkpoint, folder / "copy")]
        exports = []
        for precision in arguments.precision or PRECISIONS:
            exports.append(_export(checkpoint, folder / "bundle", precision))
            copied.append(_copy(checkpoint, folder / "copy"))
    results = {
        "checkpoint_bytes": size,
        "cold_cache": _drop_caches(),
        "copy_seconds": [round(seconds, 2) for seconds in copied],
        "exports": exports,
        "machine": platform.processor() or platform.machine(),
    }
    _show(results)
    if arguments.json:
        write_whole(arguments.json, json.dumps(results, indent=2) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--precision", action="append", help="instead of fp16 and vision=fp16,language=int4")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="on the disk to use")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes: does it run at all?")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def check_disk(folder: Path, checkpoint_bytes: int) -> None:
    """Leave with one sentence where ``folder`` has no room for the checkpoint and what is made of it."""
    needed, free = int(SHARE_OF_DISK * checkpoint_bytes), shutil.disk_usage(folder).free
    if free < needed:
        sys.exit(
            f"'{folder}' has {free / 1e9:.1f} GB free, but the checkpoint and a copy of it take "
            f"{needed / 1e9:.1f} GB: name another --folder."
        )


def _copy(source: Path, target: Path) -> float:
    with _timed() as seconds:
        shutil.copytree(source, target)
    shutil.rmtree(target)
    return seconds[0]


def _export(checkpoint: Path, bundle: Path, precision: str) -> dict[str, Any]:
    """Export in a process of its own; return its time, its largest RssAnon and the bundle's size."""
    command = [
        sys.executable,
        "-m",
        "divprune_edge.export",
        "llava",
        "--model",
        str(checkpoint),
        "--prune",
        "0.9",
    ]
    command += ["--precision", precision, "--no-verify", "--output", str(bundle)]
    largest = 0
    with _timed() as seconds:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while process.poll() is None:
            largest = max(largest, anonymous_bytes(process.pid))
            time.sleep(SAMPLE_SECONDS)
    if process.returncode != 0:
        sys.exit(f"The export in {precision} failed with exit code {process.returncode}.")
    size = sum(file.stat().st_size for file in bundle.rglob("*") if file.is_file())
    shutil.rmtree(bundle)
    return {
        "precision": precision,
        "seconds": round(seconds[0], 2),
        "rss_anon_bytes": largest,
        "bundle_bytes": size,
    }


@contextmanager
def _timed() -> Iterator[list[float]]:
    """Give a list that holds the seconds until everything written is on the disk, once the block has ended."""
    seconds: list[float] = []
    _drop_caches()
    started = time.perf_counter()
    yield seconds
    os.sync()
    seconds.append(time.perf_counter() - started)


def _drop_caches() -> bool:
    """Empty the page cache where this user may."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        return False
    return True


def anonymous_bytes(pid: int) -> int:
    """Return the RssAnon of a process: memory that is its own and not the page cache's. 0 once it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    line = next((line for line in status.splitlines() if line.startswith("RssAnon:")), None)
    return int(line.split()[1]) * 1024 if line else 0


def _show(results: dict[str, Any]) -> None:
    copies = sorted(results["copy_seconds"])
    copy = copies[len(copies) // 2]
    cache = "cold page cache" if results["cold_cache"] else "page cache as it was"
    print(
        f"checkpoint {results['checkpoint_bytes'] / 1e9:.2f} GB, copied in {copy:.1f} s ({copies}), {cache}"
    )
    print(f"{'precision':28} {'seconds':>8} {'x copy':>7} {'RssAnon':>9} {'bundle':>9}")
    for export in results["exports"]:
        print(
            f"{export['precision']:28} {export['seconds']:8.1f} {export['seconds'] / copy:7.2f} "
            f"{export['rss_anon_bytes'] / 1e9:6.2f} GB {export['bundle_bytes'] / 1e9:6.2f} GB"
        )


if __name__ == "__main__":
    main()
