"""The soak in short: the same load for half a minute."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import run_module

pytest.importorskip("fastapi")
psutil = pytest.importorskip("psutil")


@pytest.mark.slow
def test_half_a_minute(tmp_path: Path) -> None:
    from bench.soak import faults, soak

    bundle = tmp_path / "demo"
    options = ["--prune", "0.9", "--dialect", "onnxruntime", "--no-verify", "--output", str(bundle)]
    made = run_module("export", "llava", *options)
    assert made.returncode == 0, made.stderr
    found = soak(bundle, minutes=0.5, clients=8, images=16, seed=1)
    # In so short a time memory is still being taken for the first time.
    assert [fault for fault in faults(found) if not fault.startswith("memory")] == []
    assert found["memory_mb"]["growth"] < 0.5
    assert found["servers"] == 3
    counts = found["counts"]
    assert counts["answered"] > 10
    assert {"vanish", "malformed", "413 image-too-large", "429 server-busy"} <= set(counts)


def test_what_does_not_hold_is_said() -> None:
    from bench.soak import faults

    fine = {
        "wrong": [],
        "stuck": [],
        "left_in_flight": 0,
        "left_in_slots": 0,
        "exit_code": 0,
        "tracebacks": 0,
        "memory_mb": {"growth": 0.01},
    }
    assert faults(fine) == []
    for name, value in (
        ("wrong", ["a"]),
        ("stuck", ["b"]),
        ("left_in_flight", 1),
        ("left_in_slots", 1),
        ("exit_code", -9),
        ("tracebacks", 1),
        ("memory_mb", {"growth": 0.06}),
    ):
        assert len(faults({**fine, name: value})) == 1


def test_only_a_killed_server_may_break_off() -> None:
    from bench.soak import Client, Seen, Server

    server, seen = Server.__new__(Server), Seen()
    client = Client(server, [], seen, 0.0, 0)
    for killed, up, since, fault in (
        (-9.0, 5.0, 6.0, True),  # it has been there all the time
        (7.0, 5.0, 6.0, False),  # it is down
        (7.0, 8.0, 6.0, False),  # it was down meanwhile
        (7.0, 8.0, 9.0, True),  # it was down before
    ):
        server._killed, server._up, client.since = killed, up, since
        seen.wrong.clear()
        client._broken_off("by nobody")
        assert bool(seen.wrong) is fault
