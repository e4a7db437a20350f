"""The load on servers: that it runs at all, when requests are sent, and what is made of the samples."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from conftest import run_module

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

from bench.load import Ask, Sample, closed_loop, figures, open_loop, poisson
from bench.serve_summary import MARKS, PAGE, RESULTS, sustained, tables


@pytest.mark.slow
def test_tiny(tmp_path: Path) -> None:
    file = tmp_path / "serve.json"
    result = run_module("bench.serve", "--tiny", "--threads", "1", "--json", str(file))
    assert result.returncode == 0, result.stderr
    found = json.loads(file.read_text())
    ours = [row for row in found["rows"] if row["server"].startswith("ours")]
    whole = {("ours int8", images, visual) for images in ("new", "gallery") for visual in (58, 576)}
    assert {(row["server"], row["images"], row["visual"]) for row in ours} == {
        *whole,
        ("ours int8, encoder cut 1:144", "new", 58),
    }
    for row in found["rows"]:
        assert row["answered"] == row["requests"] > 2 and not row["failed"]
        assert row["tokens_per_second"] == pytest.approx(16 * row["answers_per_second"], rel=1e-2)
        assert 0 < row["ttft_ms"]["p50"] <= row["ttft_ms"]["p95"] <= row["ttft_ms"]["p99"]
    assert len(found["rows"]) == len(ours) + 2 * (not found["skipped"])
    assert found["batching"]["ratio"] > 0 and found["batching"]["step_ms"]["one"] > 0
    assert "| ours int8 | 58 | new |" in result.stdout


def test_arrivals() -> None:
    slow, fast = (np.array(poisson(rate, 1000)) for rate in (2.0, 8.0))
    assert slow[-1] == pytest.approx(500) and np.allclose(slow, 4 * fast)
    gaps = np.diff(slow)
    assert gaps.min() > 0 and gaps.std() == pytest.approx(gaps.mean(), rel=0.1)  # as exponential ones have it


class Slow(BaseHTTPRequestHandler):
    """Streams two tokens, 0.2 and 0.3 s after the request."""

    running = most = 0
    guard = threading.Lock()

    def do_POST(self) -> None:
        with self.guard:
            Slow.running += 1
            Slow.most = max(Slow.most, Slow.running)
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(429 if self.path == "/busy" else 200)
        self.end_headers()
        for pause in (0.2, 0.1):
            time.sleep(pause)
            self.wfile.write(b'data: {"choices": [{"text": "a"}]}\n\n')
            self.wfile.flush()
        with self.guard:
            Slow.running -= 1

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def slow() -> Iterator[str]:
    Slow.running = Slow.most = 0
    server = ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_open_loop_waits_for_nobody(slow: str) -> None:
    times = [0.02 * i for i in range(6)]
    samples = open_loop(slow, [Ask("/", b"{}")] * 6, times, 4)
    assert Slow.most == 4  # all at once, as far as the bound lets them
    assert [sample.status for sample in samples] == [200] * 4 + [0] * 2
    found = figures(samples)
    assert (found["answered"], found["turned_away"]) == (4, 2)
    assert found["ttft_ms"]["p50"] >= 200 and found["gap_ms"]["p50"] >= 90
    assert np.allclose(np.diff([sample.due for sample in samples]), 0.02)


def test_a_closed_loop_waits(slow: str) -> None:
    samples = closed_loop(slow, [Ask("/", b"{}")] * 5, 2)
    assert Slow.most == 2 and len(samples) == 5 and all(sample.answered for sample in samples)


def test_refusals_are_counted(slow: str) -> None:
    found = figures(open_loop(slow, [Ask("/busy", b"{}")] * 2, [0.0, 0.0], 4))
    assert found == {"requests": 2, "answered": 0, "turned_away": 2, "failed": 0}


def test_what_breaks_off_has_failed() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        found = figures(closed_loop(f"http://127.0.0.1:{nobody.getsockname()[1]}", [Ask("/", b"{}")], 1))
    assert found == {"requests": 1, "answered": 0, "turned_away": 0, "failed": 1}


def test_figures() -> None:
    samples = [Sample(10.0, 200, [10.5, 10.6]), Sample(11.0, 200, [12.0, 12.4]), Sample(11.5, 500)]
    found = figures(samples)
    assert (found["requests"], found["answered"], found["failed"]) == (3, 2, 1)
    assert found["ttft_ms"]["p50"] == 750 and found["gap_ms"]["p50"] == 250
    assert found["answers_per_second"] == round(2 / 2.4, 3)
    assert found["tokens_per_second"] == round(4 / 2.4, 2)


def row(load: float, p95: float, turned_away: int = 0, **facts: object) -> dict[str, object]:
    times = {"p50": p95, "p95": p95, "p99": p95}
    return {"load": load, "ttft_ms": times, "turned_away": turned_away, "requests": 9, **facts}


def test_the_load_that_is_sustained() -> None:
    rows = [row(1, 1000), row(2, 3000), row(4, 9000)]
    assert sustained(rows, 0.5) is None
    assert sustained(rows, 2) == (1.5, False)
    assert sustained(rows, 3) == (2, False)
    assert sustained(rows[:2], 5) == (2, True)
    assert sustained([row(1, 1000), row(2, 1200, 3)], 5) == (1, False)  # who was turned away did not wait


def test_the_page_shows_what_was_measured() -> None:
    shown = PAGE.read_text(encoding="utf-8").split(MARKS[0])[1].split(MARKS[1])[0]
    assert shown == (tables(json.loads(RESULTS.read_text())) + "\n" if RESULTS.is_file() else "")


def test_the_tables() -> None:
    facts = {"server": "ours", "images": "new"}
    rows = [
        row(1, 1000, visual=58, **facts),
        row(2, 3000, visual=58, **facts),
        row(0.5, 1500, visual=576, **facts),
        row(1, 9000, visual=576, **facts),
        row(2, 1000, server="ours, cut", images="new", visual=58),
        row(1, 1000, server="ours", images="gallery", visual=58),
        row(1, 3500, server="ours", images="gallery", visual=576),
        row(1, 1000, server="a peer", images="none", visual=576),
    ]
    batching = {
        "at_once": 8,
        "one": 10.0,
        "together": 35.0,
        "ratio": 3.5,
        "step_ms": {"one": 9.0, "together": 20.0},
    }
    text = tables({"rows": rows, "batching": batching, "skipped": []})
    for line in (
        "| images | server | visual tokens | 0.5 s | 1 s | 1.5 s | 2 s | 3 s | 5 s |",
        "| new | ours | 58 | – | 1.00 | 1.25 (2.5×) | 1.50 (2.8×) | ≥ 2.00 (≥ 3.3×) | ≥ 2.00 (≥ 2.7×) |",
        "| new | ours | 576 | – | – | 0.50 | 0.53 | 0.60 | 0.73 |",
        "| new | ours, cut | 58 | – | ≥ 2.00 | ≥ 2.00 (≥ 4.0×) | ≥ 2.00 (≥ 3.8×) | ≥ 2.00 (≥ 3.3×) | ≥ 2.00 (≥ 2.7×) |",
        "| gallery | ours | 58 | – | ≥ 1.00 | ≥ 1.00 | ≥ 1.00 | ≥ 1.00 | ≥ 1.00 |",
        "| a peer | 576 | none | 1 | 0.00 | 0 of 9 | 1,000 / 1,000 |  |",
    ):
        assert line in text.splitlines()
    assert text.count("a peer") == 1 and "3.50×" in text
