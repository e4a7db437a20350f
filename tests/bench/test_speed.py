"""The benchmark runs at all, on tiny sizes; no time is looked at."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from conftest import run_module

from bench import loop
from bench.engines import llamacpp_
from bench.summary import ratios, show, summarise


def test_tiny_benchmark(tmp_path: Path) -> None:
    arguments = (
        "--tiny",
        "--rounds",
        "1",
        "--threads",
        "1",
        "--only",
        "language=int4 onnxruntime,transformers fp32",
    )
    result = run_module(
        "bench.speed",
        *arguments,
        "--json",
        str(tmp_path / "speed.json"),
        "--chart",
        str(tmp_path / "speed.svg"),
    )
    assert result.returncode == 0, result.stderr
    summary = json.loads((tmp_path / "speed.json").read_text())
    assert {(row["label"], row["visual"]) for row in summary["rows"]} == {
        (label, visual)
        for label in ("ours vision=int8,language=int4 onnxruntime", "transformers fp32 sdpa")
        for visual in (58, 576)
    }
    assert all(row[stage] > 0 for row in summary["rows"] for stage in ("vision", "prefill", "decode", "ttft"))
    assert len(summary["ratios"]) == 4
    assert "| transformers fp32 sdpa | 576 |" in result.stdout
    chart = ElementTree.parse(tmp_path / "speed.svg").getroot()
    assert len([bar for bar in chart.iter() if bar.tag.endswith("rect")]) == 1 + 3 + 4 * 3


def sample(label: str, engine: str, times: dict[str, list[dict[str, float]]]) -> dict[str, object]:
    return {
        "label": label,
        "engine": engine,
        "versions": {},
        "peak_rss_mb": 1.0,
        "size_mb": 1.0,
        "samples_ms": times,
    }


def test_medians_and_ratios(capsys: pytest.CaptureFixture[str]) -> None:
    def whole(vision: float, prefill: float) -> dict[str, float]:
        return {"vision": vision, "select": 1.0, "prefill": prefill, "decode": 10.0}

    ours = {"58": [whole(10, 4), whole(12, 5), whole(11, 90)], "576": [whole(10, 40)] * 3}
    theirs = {"58": [whole(30, 8)] * 3, "576": [whole(30, 60)] * 3}
    alone = {"58": [{"prefill": 4.0, "decode": 5.0}], "576": [{"prefill": 50.0, "decode": 5.0}]}
    results = [sample("us", "ours", ours), sample("them", "peer", theirs), sample("LM", "peer", alone)]
    summary = summarise(results, [{"label": "absent", "reason": "not installed"}], 2, ["speed"], 64)
    first = summary["rows"][0]
    assert (first["vision"], first["prefill"], first["prefill_spread"]) == (11, 5, [4, 90])
    assert first["ttft"] == 18 and first["tokens_per_second"] == 100
    assert [round(ratio["ratio"], 3) for ratio in summary["ratios"]] == [
        round(91 / 18, 3),
        round(39 / 18, 3),
        round(4 / 5, 3),
        round(5 / 10, 3),
    ]
    assert summary["rows"][-1]["ttft"] is None
    show(summary)
    printed = capsys.readouterr().out
    assert "| LM | 58 | – | – | 4 [4, 4] | – | 200.0 |" in printed
    assert "left out: absent: not installed" in printed


def test_no_peers_no_ratios() -> None:
    assert ratios([{"visual": 3, "ours": True, "ttft": 1, "prefill": 1, "decode": 1}]) == []


def test_every_tensor_of_a_decoder_has_its_name_in_gguf() -> None:
    assert llamacpp_._target("lm_head.weight") == ("output.weight", True)
    assert llamacpp_._target("model.layers.11.mlp.up_proj.weight") == ("blk.11.ffn_up.weight", False)


def test_the_loop_takes_longer_than_its_session(demo_bundle: Path) -> None:
    loops, inside = loop.measure(demo_bundle, tokens=6, repeats=2, threads=1)
    assert len(loops) == len(inside) == 2
    assert all(whole > part > 0 for whole, part in zip(loops, inside, strict=True))
