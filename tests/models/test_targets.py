"""Targets: internally consistent, sourced, and found by name."""

from __future__ import annotations

import math

import numpy as np
import pytest
from raising import refused

from divprune_edge.models.families.family import WeightNames
from divprune_edge.models.families.llava.spec import read_llava
from divprune_edge.models.targets import SEVEN_BILLION, TARGETS, Target, find_target

RTX = [target for target in TARGETS.values() if target.backend == "tensorrt-rtx"]
DEVICES = [
    target for target in TARGETS.values() if target.backend.startswith("tensorrt") and target.name != "rtx"
]
NAMES = (
    "cpu cuda orin-nano-8gb orin-nx-16gb agx-orin-64gb orin-nano-8gb-jp7 orin-nx-16gb-jp7 agx-orin-64gb-jp7 "
    "thor a100 h100 h200 l4 rtx3090 rtx4090 rtx5090 dgx-spark rtx"
)


def test_names() -> None:
    assert list(TARGETS) == NAMES.split()
    assert all(target.name == name for name, target in TARGETS.items())


@pytest.mark.parametrize("target", DEVICES, ids=lambda target: target.name)
def test_every_fact_of_a_device_has_a_source(target: Target) -> None:
    assert target.memory_bytes and target.bandwidth and target.sm and target.tensorrt
    assert {"software", "sm", "memory", "bandwidth", "rates"} <= set(target.sources)
    assert all(len(source) > 10 for source in target.sources.values())


@pytest.mark.parametrize("target", DEVICES, ids=lambda target: target.name)
def test_rates_are_dense_and_in_order(target: Target) -> None:
    """A sparse rate slipped in would be twice its neighbours'; a GeForce halves FP16 with FP32 accumulation."""
    rates, geforce = target.rates, target.name.startswith("rtx")
    assert rates["fp32"] < rates["fp16"]
    if "int8" in rates:
        assert rates["int8"] / rates["fp16"] == pytest.approx(4 if geforce else 2, rel=0.01)
    if "tf32" in rates and target.name != "l4":
        assert rates["fp16"] / rates["tf32"] == pytest.approx(2, rel=0.01)
    if "fp8" in rates:
        assert rates["fp8"] / rates["fp16"] == pytest.approx(2, rel=0.01)
    if "fp4" in rates:
        assert rates["fp4"] / rates["fp8"] == pytest.approx(4 if geforce else 2, rel=0.01)


def test_orin_rates_follow_from_cores_and_clocks() -> None:
    """Third-generation tensor cores: 2048 dense operations of float16 per SM and clock; 128 FP32 lanes per SM."""
    for name, sms, clock in (
        ("orin-nano-8gb", 8, 1.02),
        ("orin-nx-16gb", 8, 1.173),
        ("agx-orin-64gb", 16, 1.3),
    ):
        rates = TARGETS[name].rates
        assert rates["fp16"] == pytest.approx(sms * 2048 * clock * 1e9, rel=0.01)
        assert rates["fp32"] == pytest.approx(sms * 128 * 2 * clock * 1e9, rel=0.01)


def test_software_decides_the_dialect() -> None:
    for target in DEVICES:
        old = target.tensorrt == "10.3"
        assert target.dialect == ("decomposed" if old else "static")
        assert target.opset == (20 if old else 24)
        assert (target.python, target.cuda) == {"6.2": ("3.10", "12.6"), "7.2": ("3.12", "13.2")}.get(
            target.jetpack or "", (None, None)
        )
        assert target.shared_memory == (target.jetpack is not None or target.name == "dgx-spark")


def test_rtx_cards_are_tensorrt_rtxs() -> None:
    """Each is one compute capability, and ``rtx`` all that its engines are built for."""
    every = (80, 86, 89, 120, 121)
    assert {target.name: target.sms for target in RTX} == {
        "rtx3090": (86,),
        "rtx4090": (89,),
        "rtx5090": (120,),
        "dgx-spark": (121,),
        "rtx": every,
    }
    assert {target.software for target in RTX} == {"TensorRT-RTX 1.7"}
    assert TARGETS["l4"].software == "TensorRT 10.16", "the same sm_89, but a card for datacenters"
    assert (TARGETS["l4"].sms, TARGETS["cpu"].sms, TARGETS["cuda"].sms) == ((89,), (), ())


def test_every_rtx_card_at_once_has_no_figures() -> None:
    target = TARGETS["rtx"]
    assert (target.sm, target.memory_bytes, target.bandwidth, dict(target.rates)) == (None, None, None, {})
    assert {"software", "precision"} <= set(target.sources)
    assert (target.jetpack, target.cuda, target.python, target.shared_memory) == (None, None, None, False)


@pytest.mark.parametrize(
    ("name", "sms", "clock"), [("rtx3090", 82, 1.695), ("rtx4090", 128, 2.52), ("rtx5090", 170, 2.407)]
)
def test_geforce_rates_follow_from_cores_and_clocks(name: str, sms: int, clock: float) -> None:
    """128 FP32 lanes per SM; tensor cores do twice that in FP16 with FP32 accumulation, and eight times in INT8."""
    rates = TARGETS[name].rates
    for dtype, per_clock in (("fp32", 256), ("fp16", 512), ("int8", 2048)):
        assert rates[dtype] == pytest.approx(sms * per_clock * clock * 1e9, rel=0.01)


def test_jetpack_7_changes_only_the_software() -> None:
    old, new = TARGETS["orin-nano-8gb"], TARGETS["orin-nano-8gb-jp7"]
    assert (old.memory_bytes, old.bandwidth, old.rates) == (new.memory_bytes, new.bandwidth, new.rates)
    assert new.title == "Jetson Orin Nano 8GB, JetPack 7.2"


def test_float16_where_a_7b_model_takes_at_most_half_of_the_memory() -> None:
    halves = {target.name.removesuffix("-jp7") for target in DEVICES if target.precision == "fp16"}
    assert halves == {"agx-orin-64gb", "thor", "a100", "h100", "h200", "rtx5090", "dgx-spark"}
    rest = {target.precision for target in DEVICES} - {"fp16"}
    assert rest == {"vision=fp16,language=int4"}


def test_the_size_of_a_7b_model() -> None:
    text = {"model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32}
    spec = read_llava({"model_type": "llava", "text_config": text})
    names = WeightNames({"vision_tower": "v.", "multi_modal_projector": "p."}, "d.", "head")
    shapes = names.parameters(spec, 32064, 32064)
    assert sum(math.prod(shape) for shape in shapes.values()) * np.dtype(np.float16).itemsize == SEVEN_BILLION


def test_an_unknown_target_is_one_sentence() -> None:
    with refused("target-unknown", "'orin-nano'", "'orin-nano-8gb'"):
        find_target("orin-nano")
