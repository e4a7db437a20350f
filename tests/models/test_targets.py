"""Targets: internally consistent, sourced, and found by name."""

from __future__ import annotations

import math

import numpy as np
import pytest

from divprune_edge.errors import UserError
from divprune_edge.models.llava import WeightNames, read_llava
from divprune_edge.models.targets import SEVEN_BILLION, TARGETS, Target, find_target

DEVICES = [target for target in TARGETS.values() if target.backend == "tensorrt"]
NAMES = (
    "cpu cuda orin-nano-8gb orin-nx-16gb agx-orin-64gb orin-nano-8gb-jp7 orin-nx-16gb-jp7 agx-orin-64gb-jp7 "
    "thor a100 h100 h200 l4 rtx4090"
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
    """A sparse rate slipped in would be twice its neighbours'."""
    rates = target.rates
    assert rates["fp32"] < rates["fp16"]
    if "int8" in rates:
        assert rates["int8"] / rates["fp16"] == pytest.approx(4 if target.name == "rtx4090" else 2, rel=0.01)
    if "tf32" in rates and target.name != "l4":
        assert rates["fp16"] / rates["tf32"] == pytest.approx(2, rel=0.01)


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
        assert target.shared_memory == (target.jetpack is not None)


def test_jetpack_7_changes_only_the_software() -> None:
    old, new = TARGETS["orin-nano-8gb"], TARGETS["orin-nano-8gb-jp7"]
    assert (old.memory_bytes, old.bandwidth, old.rates) == (new.memory_bytes, new.bandwidth, new.rates)
    assert new.title == "Jetson Orin Nano 8GB, JetPack 7.2"


def test_float16_where_a_7b_model_takes_at_most_half_of_the_memory() -> None:
    halves = {target.name.removesuffix("-jp7") for target in DEVICES if target.precision == "fp16"}
    assert halves == {"agx-orin-64gb", "thor", "a100", "h100", "h200"}
    rest = {target.precision for target in DEVICES} - {"fp16"}
    assert rest == {"vision=fp16,language=int4"}


def test_the_size_of_a_7b_model() -> None:
    text = {"model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32}
    spec = read_llava({"model_type": "llava", "text_config": text})
    shapes = WeightNames("v.", "p.", "d.", "head").parameters(spec, 32064, 32064)
    assert sum(math.prod(shape) for shape in shapes.values()) * np.dtype(np.float16).itemsize == SEVEN_BILLION


def test_an_unknown_target_is_one_sentence() -> None:
    with pytest.raises(
        UserError, match=r"no target 'orin-nano' \(did you mean 'orin-nano-8gb'\?\): choose among cpu"
    ):
        find_target("orin-nano")
