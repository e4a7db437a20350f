"""LoRA adapters of PEFT: what one holds, read and checked.

Hu et al. 2021 (2106.09685): the weight W [out, in] of a layer becomes W + s · B·A with A [r, in], B [out, r] and
s = alpha / r, or alpha / √r with ``use_rslora`` (2312.03732).
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from divprune_edge.errors import UserError
from divprune_edge.export.checkpoint import FLOATS, INDEX, SINGLE, StoredTensor
from divprune_edge.manifest import AdapterSource
from divprune_edge.models.families.family import Family
from divprune_edge.models.files import CheckpointFiles

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"

_PREFIX = "base_model.model."
_LOW_RANK = re.compile(r"(.+)\.lora_(embedding_)?([AB])(\.weight)?")

# What a merge is right for. Every other setting changes what the matrices mean, unless it is off.
_UNDERSTOOD = {
    "task_type",
    "peft_type",
    "auto_mapping",
    "peft_version",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "r",
    "target_modules",
    "exclude_modules",
    "lora_alpha",
    "lora_dropout",
    "fan_in_fan_out",  # of layers that store [in, out]; those of LLaVA do not, and peft ignores it there
    "bias",
    "use_rslora",
    "modules_to_save",
    "init_lora_weights",
    "layers_to_transform",
    "layers_pattern",
    "rank_pattern",
    "alpha_pattern",
    "megatron_core",
    "eva_config",
    "ensure_weight_tying",
    "runtime_config",
    "qalora_group_size",
}
_TITLES = {"use_dora": "DoRA (use_dora)", "use_qalora": "QALoRA (use_qalora)"}
# Ways to begin that leave the base weights as they are; PiSSA and its like change them.
_PLAIN_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")

MERGE = "merge it with peft (PeftModel.from_pretrained(…).merge_and_unload().save_pretrained(FOLDER)) and export FOLDER"


@dataclass(frozen=True)
class LowRank:
    """What is added to one weight: keys of A and B in the adapter's file, and s. ``embedding`` adds (B·A)^T."""

    a: str
    b: str
    scale: float
    embedding: bool


@dataclass(frozen=True)
class Adapter:
    """An adapter folder, opened and checked.

    Attributes:
        folder: with ``adapter_config.json`` and ``adapter_model.safetensors``.
        family: of its model.
        base: the model that it names as its own; None where it names none.
        sums: canonical name of a weight -> what is added to it.
        replaced: canonical name of a weight -> key of what takes its place (``modules_to_save``, biases).
    """

    folder: Path
    family: Family[Any]
    base: str | None
    sums: Mapping[str, LowRank]
    replaced: Mapping[str, str]

    @property
    def file(self) -> Path:
        """The weights."""
        return self.folder / WEIGHTS

    def source(self) -> AdapterSource:
        """Return its entry in the manifest."""
        digest = hashlib.sha256()
        with self.file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
        return AdapterSource(name=self.folder.resolve().name, base=self.base, sha256=digest.hexdigest())


def open_adapter(folder: Path, family: Family[Any]) -> Adapter:
    """Read a LoRA adapter of a model of ``family``.

    Raises:
        UserError: no adapter, of another kind than LoRA, or with settings that a merge would get wrong.
    """
    folder = folder.expanduser()
    if not (folder / CONFIG).is_file():
        raise UserError(
            f"'{folder}' is no adapter: it has no {CONFIG}; give the folder that peft's save_pretrained wrote.",
            code="adapter-missing",
        )
    config = CheckpointFiles(folder).required_json(CONFIG, "says what the adapter is")
    _check_config(folder, config)
    if not (folder / WEIGHTS).is_file():
        has = (
            f"only {PICKLE}, a pickle, which can run code when loaded"
            if (folder / PICKLE).is_file()
            else "no weights"
        )
        raise UserError(
            f"The adapter '{folder}' has {has}: expected {WEIGHTS}; save it again with peft's "
            "save_pretrained(FOLDER, safe_serialization=True).",
            code="adapter-without-weights",
        )
    sums, replaced = _read_keys(folder, config, family)
    return Adapter(folder, family, config.get("base_model_name_or_path") or None, sums, replaced)


def refuse_adapter_alone(folder: Path, model: str) -> None:
    """Say what a folder is that holds an adapter and no whole model.

    Raises:
        UserError: it is one; the base that it names is in the sentence.
    """
    if not (folder / CONFIG).is_file() or any((folder / name).is_file() for name in (SINGLE, INDEX)):
        return
    if any(path.name != PICKLE for path in folder.glob("*.bin")):
        return  # whole weights, in a format of their own
    config = CheckpointFiles(folder).required_json(CONFIG, "says what the adapter is")
    kind, base = config.get("peft_type") or "PEFT", config.get("base_model_name_or_path")
    named = f" for '{base}'" if base else ""
    raise UserError(
        f"'{model}' is a {kind} adapter{named} and no whole model: export its base with it, "
        f"'python -m export llava --model {base or 'BASE'} --adapter {model}'.",
        code="adapter-without-base",
    )


def _check_config(folder: Path, config: Mapping[str, Any]) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise UserError(
            f"The adapter '{folder}' is of type {kind!r}, only LORA can be merged here: {MERGE}.",
            code="adapter-not-supported",
        )
    start = config.get("init_lora_weights")
    if start not in _PLAIN_STARTS:
        raise UserError(
            f"The adapter '{folder}' was begun with init_lora_weights {start!r}, which changes the base's weights as "
            f"well: {MERGE}.",
            code="adapter-not-supported",
        )
    for name, value in config.items():
        if name not in _UNDERSTOOD and value not in (None, False, {}, []):
            raise UserError(
                f"The adapter '{folder}' uses {_TITLES.get(name, name)}, which cannot be merged here (its value is "
                f"{json.dumps(value)[:60]}): {MERGE}.",
                code="adapter-not-supported",
            )
    for name in ("r", "lora_alpha"):
        value = config.get(name, 8)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or (name == "r" and value < 1):
            raise UserError(
                f"The adapter '{folder}' has {name} {value!r} in {CONFIG}, expected a positive number: get it again.",
                code="adapter-damaged",
            )


def adapter_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Return what the adapter's file holds.

    Raises:
        UserError: it is damaged, or a tensor is of a type that cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    file, found = folder / WEIGHTS, {}
    try:
        with safe_open(file, framework="numpy") as handle:
            for key in handle.keys():  # noqa: SIM118 - not a mapping
                view = handle.get_slice(key)
                found[key] = StoredTensor(key, file, view.get_dtype(), tuple(view.get_shape()))
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"'{file}' is not a whole safetensors file ({error}): it is truncated or damaged, get it again.",
            code="adapter-damaged",
        ) from error
    other = next((one for one in found.values() if one.dtype not in FLOATS), None)
    if other is not None:
        raise UserError(
            f"The adapter's weight '{other.name}' is stored as {other.dtype}, supported are {', '.join(FLOATS)}: save "
            "it unquantised.",
            code="adapter-not-supported",
        )
    return found


def _read_keys(
    folder: Path, config: Mapping[str, Any], family: Family[Any]
) -> tuple[dict[str, LowRank], dict[str, str]]:
    """Return what is added and what is replaced, by canonical names of weights."""
    tensors = adapter_tensors(folder)
    pairs: dict[tuple[str, bool], dict[str, str]] = {}
    replaced: dict[str, str] = {}
    for key in tensors:
        found = _LOW_RANK.fullmatch(key)
        if found is not None:
            pairs.setdefault((found.group(1), bool(found.group(2))), {})[found.group(3)] = key
        elif "lora_" in key:
            raise UserError(
                f"The adapter '{folder}' holds '{key}', which belongs to a kind of LoRA that cannot be merged here: "
                f"{MERGE}.",
                code="adapter-not-supported",
            )
        else:
            replaced[_canonical(folder, key, family)] = key
    sums = {}
    for (module, embedding), parts in pairs.items():
        if set(parts) != {"A", "B"}:
            raise UserError(
                f"The adapter '{folder}' has only one matrix of two for '{module}': it is cut short, get it again.",
                code="adapter-damaged",
            )
        a, b = parts["A"], parts["B"]
        sums[_canonical(folder, f"{module}.weight", family)] = LowRank(
            a,
            b,
            _scale(folder, config, module.removeprefix(_PREFIX), tensors[a].shape, tensors[b].shape),
            embedding,
        )
    if not sums and not replaced:
        raise UserError(f"The adapter '{folder}' holds no weights: get it again.", code="adapter-damaged")
    return sums, replaced


def _canonical(folder: Path, key: str, family: Family[Any]) -> str:
    plain = key.removeprefix(_PREFIX).replace(".modules_to_save.", ".").replace(".base_layer.", ".")
    name = family.canonical_name(plain)
    if name is None:
        raise UserError(
            f"The adapter '{folder}' has '{key}', which is no weight of such a model in the Hugging Face layout: it "
            "belongs to another model.",
            code="adapter-does-not-fit",
        )
    return name


def _scale(
    folder: Path, config: Mapping[str, Any], module: str, a: tuple[int, ...], b: tuple[int, ...]
) -> float:
    """Return s of a module; a pattern may set its rank and alpha, found as peft's ``get_pattern_key`` finds it."""
    rank = _by_pattern(config.get("rank_pattern"), module, config.get("r", 8))
    if len(a) != 2 or len(b) != 2 or not a[0] == b[1] == rank:
        raise UserError(
            f"The adapter '{folder}' has matrices of {list(a)} and {list(b)} for '{module}', but {CONFIG} says rank "
            f"{rank}: config and weights do not belong together.",
            code="adapter-does-not-fit",
        )
    alpha = _by_pattern(config.get("alpha_pattern"), module, config.get("lora_alpha", 8))
    return float(alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))


def _by_pattern(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default
