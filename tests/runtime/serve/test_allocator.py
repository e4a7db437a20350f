"""What was let go of is the system's again."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
from conftest import ROOT

CODE = """
import psutil
from divprune_edge.runtime.serve.allocator import give_back
{call}
def held():
    blocks = [(bytearray(b"x") * (2 << 20), bytearray(b"y") * 600) for _ in range(60)]
    return [small for _, small in blocks]
process, kept = psutil.Process(), [held()]
before = process.memory_info().rss
for _ in range(3):
    kept.append(held())
print(process.memory_info().rss, before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_large_blocks_do_not_stay_behind_small_ones() -> None:
    after = {}
    for call in ("give_back()", ""):
        ran = subprocess.run(
            [sys.executable, "-c", CODE.format(call=call)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        after[call] = int(ran.stdout.split()[0])
    assert after["give_back()"] < 0.5 * after[""]
