"""Signals of the vision graph against transformers' own attentions, and their way into a bundle."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from checkpoints import SIGLIP, make_checkpoint
from exporting import close, export, failures, images, plan_of
from raising import refused

from divprune_edge.export.verify import verify_bundle
from divprune_edge.models.signals import CLASS_TOKEN, SIGNALS, parse_signals
from divprune_edge.models.towers.signals import SignalLayers, signal_layers

FULL = {"vision_feature_layer": -1, "vision_feature_select_strategy": "full"}
TOWERS = {
    "plain": {},
    "full strategy": {"llava": FULL},
    "feature layer 1": {"llava": {"vision_feature_layer": 1}},
    "two features": {"llava": {"vision_feature_layer": [-3, -1]}},
    "deep": {"vision": {"num_hidden_layers": 7}},
    "siglip": {"tower": SIGLIP, "llava": FULL},
    "siglip, first patch dropped": {"tower": SIGLIP, "llava": {"vision_feature_layer": [-3, -1]}},
    "siglip, deep": {"tower": SIGLIP, "llava": FULL, "vision": {"num_hidden_layers": 7}},
}


def signals_of(name: str) -> list[str]:
    """Return what a tower can give."""
    return [signal for signal in SIGNALS if not (name.startswith("siglip") and signal in CLASS_TOKEN)]


def transformers_signals(folder: Path, pixels: Any, plan: Any) -> dict[str, Any]:
    """What the signals mean, from the attentions, keys and hidden states that transformers reports."""
    import torch
    from transformers import AutoImageProcessor, LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    images = processor(images=list(pixels), return_tensors="pt", input_data_format="channels_last")
    spec, keys, values = plan.spec.vision, {}, {}
    layers = signal_layers(spec)
    tower = model.model.vision_tower
    encoder = getattr(tower, "vision_model", tower).encoder
    layer = encoder.layers[layers.feature].self_attn
    layer.k_proj.register_forward_hook(lambda module, inputs, output: keys.setdefault("k", output))
    for i in range(layers.feature + 1):
        hook = functools.partial(lambda i, module, inputs, output: values.setdefault(i, output), i)
        encoder.layers[i].self_attn.v_proj.register_forward_hook(hook)
    with torch.inference_mode():
        out = tower(images["pixel_values"], output_attentions=True, output_hidden_states=True)
        cls = torch.cat([out.hidden_states[i][:, :1] for i in spec.feature_states], dim=-1)
        token = model.model.multi_modal_projector(cls)
    first = int(spec.drops_first)
    maps = torch.stack([a.mean(1) for a in out.attentions[: layers.feature + 1]])
    attention = [a.mean(1).numpy()[:, :, first:] for a in out.attentions]
    tiles, n, _ = keys["k"].shape
    heads = keys["k"].view(tiles, n, spec.heads, spec.head_dim)
    return {
        "cls_attention": attention[layers.feature][:, 0],
        "cls_attention_sum": sum(attention[i][:, 0] for i in layers.summed),
        "attention_object": attention[layers.object].mean(1),
        "attention_received": attention[layers.feature].mean(1),
        "keys": heads.mean(2).numpy()[:, first:],
        "cls_token": token.numpy(),
        "information_flow": flow_of(maps, values, spec),
        "attention_global": torch.stack([from_global(m[first:, first:]) for m in maps[-1]]).numpy(),
    }


def flow_of(maps: Any, values: Any, spec: Any) -> Any:
    """FlowCut's cumulative score, layer by layer, from attention maps [layers, tiles, n, n] and values."""
    import torch

    total = None
    for i, attention in enumerate(maps):
        tiles, n, _ = values[i].shape
        v = values[i].view(tiles, n, spec.heads, spec.head_dim)
        semantic = torch.einsum("thd,tnhd->thn", v[:, 0], v).softmax(-1).mean(1)
        relation, semantic = (
            torch.nn.functional.normalize(row[:, int(spec.drops_first) :], p=1, dim=1)
            for row in (attention[:, 0], semantic)
        )
        length = torch.linalg.vector_norm(v.mean(2)[:, int(spec.drops_first) :], ord=1, dim=-1)
        score = (relation + semantic) * length
        total = score if total is None else 0.5 * total + 0.5 * score
    return total.numpy()


def from_global(attention: Any) -> Any:
    """Mean over the queries of patches that receive more than 39.26 times the mean of 729 patches."""
    received = attention.mean(0)
    threshold = 39.26 / 729 * len(attention) * received.mean()
    chosen = attention[received > threshold]
    return (chosen if len(chosen) else attention).mean(0)


@pytest.mark.parametrize("name", TOWERS)
def test_every_signal_is_what_transformers_reports(tmp_path: Path, name: str) -> None:
    folder = make_checkpoint(tmp_path / "checkpoint", **TOWERS[name])
    plan = plan_of(folder, signals="all")
    bundle = export(plan, tmp_path / "bundle")
    pixels = images(bundle, 2)
    session = bundle.session(bundle.manifest.vision_encoder.file)
    names = [output.name for output in session.get_outputs()]
    assert names == ["visual_tokens", *signals_of(name)]
    assert bundle.manifest.vision_encoder.signals == plan.signals == tuple(signals_of(name))
    found = dict(zip(names, session.run(None, {"pixels": pixels}), strict=True))
    reported = transformers_signals(folder, pixels, plan)
    for signal in signals_of(name):
        wanted = reported[signal]
        assert found[signal].shape == wanted.shape, signal
        assert close(found[signal], wanted), signal
        assert found[signal].dtype == np.float32


def test_signals_read_no_layer_s_softmax(tmp_path: Path) -> None:
    """Taking the signals away takes away whole branches: what the layers read stays as it was."""
    folder = make_checkpoint(tmp_path / "checkpoint")
    graphs = []
    for signals in ("none", "all"):
        bundle = export(plan_of(folder, signals=signals), tmp_path / signals)
        graphs.append(onnx.load(bundle.folder / "vision_encoder.onnx", load_external_data=False).graph)
    plain, tapped = ({n.name: n for n in graph.node if "/signals/" not in n.name} for graph in graphs)
    computed = {o for n in plain.values() for o in n.output}  # constants may be shared under other names
    # Behind the layers, the class token is projected together with the others.
    layers = {name: node for name, node in plain.items() if "/encoder/layers." in name}
    assert len(layers) > 20
    for node_name, node in layers.items():
        assert [i for i in tapped[node_name].input if i in computed] == [
            i for i in node.input if i in computed
        ]
    softmaxes = {o for n in plain.values() if n.op_type == "Softmax" for o in n.output}
    taps = [n for n in graphs[1].node if "/signals/" in n.name]
    assert taps
    assert not softmaxes & {i for n in taps for i in n.input}


def test_float16_signals_are_float32(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "checkpoint")
    wanted = export(plan_of(folder, signals="all"), tmp_path / "fp32")
    found = export(plan_of(folder, signals="all", precision="fp16"), tmp_path / "fp16")
    pixels = images(found)
    one, two = (b.session("vision_encoder.onnx").run(None, {"pixels": pixels}) for b in (found, wanted))
    for (name, a), b in zip(
        [("visual_tokens", one[0]), *zip(SIGNALS, one[1:], strict=True)], two, strict=True
    ):
        half = name in ("visual_tokens", "cls_token")
        assert a.dtype == (np.float16 if half else np.float32), name
        assert close(a.astype(np.float32), b, 0.05), name


def test_manifest_lists_them_and_the_selector_s_own_are_always_there(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "checkpoint")
    bundle = export(plan_of(folder, signals="keys, cls_attention"), tmp_path / "bundle")
    outputs = {o.name: o for o in bundle.manifest.vision_encoder.outputs}
    assert list(outputs) == ["visual_tokens", "cls_attention", "keys"]
    assert outputs["keys"].shape == ("tiles", 25, 8)
    assert parse_signals("none", ("cls_token",)) == ("cls_token",)


def test_bad_signals_get_one_sentence(tmp_path: Path) -> None:
    with refused("signals-unknown", "cls_atention", "cls_attention"):
        parse_signals("cls_atention")
    folder = make_checkpoint(tmp_path / "checkpoint", llava={"vision_feature_layer": 0})
    assert plan_of(folder, signals="all").signals == (), "all of none"
    with refused("signals-unavailable", "keys", "are none"):
        plan_of(folder, signals="keys")


@pytest.mark.parametrize("name", TOWERS)
def test_an_export_verifies_its_signals(tmp_path: Path, name: str) -> None:
    folder = make_checkpoint(tmp_path / "checkpoint", **TOWERS[name])
    plan = plan_of(folder, signals="all")
    bundle = export(plan, tmp_path / "bundle")
    checks = verify_bundle(plan, bundle.folder, lambda line: None).checks
    assert [c.name for c in checks if c.name.startswith("signal ")] == [
        f"signal {s}" for s in signals_of(name)
    ]
    assert all(check.passed for check in checks), [c for c in checks if not c.passed]


def test_a_wrong_layer_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Signals of the layer before the feature layer do not pass."""
    import divprune_edge.models.towers.signals as module

    def early(spec: Any) -> SignalLayers:
        right = signal_layers(spec)
        return SignalLayers(right.feature - 1, right.object, range(right.feature))

    monkeypatch.setattr(module, "signal_layers", early)
    plan = plan_of(make_checkpoint(tmp_path / "checkpoint"), signals="cls_attention,attention_object")
    bundle = export(plan, tmp_path / "bundle")
    assert failures(plan, bundle.folder) == {"vision: signal cls_attention"}
