"""What peft makes of an adapter: of one matrix at a time, and of the whole reference model."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from divprune_edge.models.families.family import Family

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."


class PeftAdapter:
    """An adapter as peft reads it."""

    def __init__(self, folder: Path, family: Family[Any]) -> None:
        from peft import PeftConfig
        from safetensors import safe_open

        self._folder = folder
        self._canonical = family.canonical_name
        self._config = PeftConfig.from_pretrained(str(folder))
        opened: Any = safe_open
        self._handle = opened(folder / _WEIGHTS, framework="pt")
        self._parts: dict[str, dict[str, str]] = {}
        for key in list(self._handle.keys()):
            module, part = self._split(key)
            self._parts.setdefault(module, {})[part] = key

    def __contains__(self, name: str) -> bool:
        """Whether the adapter changes a weight of the checkpoint."""
        module, _, kind = name.rpartition(".")
        parts = self._parts.get(self._canonical(module) or "", {})
        return kind in parts or (kind == "weight" and any(part.startswith("lora_") for part in parts))

    def merged(self, name: str, weight: Any) -> Any:
        """Return what peft's own layer makes of float32 ``weight`` when it merges the adapter into it."""
        from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
        from torch import nn

        module, _, kind = name.rpartition(".")
        parts = self._parts[self._canonical(module) or ""]
        if kind in parts:
            weight = self._handle.get_tensor(parts[kind]).float()
        factors = {part: key for part, key in parts.items() if part.startswith("lora_")}
        if kind != "weight" or not factors:
            return weight
        rank, alpha = self._rank_and_alpha(next(iter(factors.values())))
        config = LoraConfig(
            r=rank, lora_alpha=alpha, use_rslora=self._config.use_rslora, target_modules=["layer"]
        )
        if any(part.startswith("lora_embedding_") for part in factors):
            layer: Any = nn.Embedding(*weight.shape, _weight=weight.clone())
        else:
            layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
            layer.weight = nn.Parameter(weight.clone(), requires_grad=False)
        model = get_peft_model(nn.ModuleDict({"layer": layer}), config)
        state = {f"{_PREFIX}layer.{part}": self._handle.get_tensor(key) for part, key in factors.items()}
        set_peft_model_state_dict(model, state)
        return model.merge_and_unload()["layer"].weight.data

    def into(self, model: Any) -> Any:
        """Return a transformers model with the adapter merged by ``PeftModel.merge_and_unload``."""
        from peft import PeftModel

        modules = {self._canonical(name) or "": name for name, _ in model.named_modules()}
        with _named_as(modules, self._folder, self._config, self._parts, self._rank_and_alpha) as folder:
            return PeftModel.from_pretrained(model, str(folder)).merge_and_unload()

    def _rank_and_alpha(self, key: str) -> tuple[int, float]:
        from peft.utils.other import get_pattern_key

        module, config = key.removeprefix(_PREFIX).split(".lora_")[0], self._config
        ranks, alphas = config.rank_pattern or {}, config.alpha_pattern or {}
        rank = ranks.get(get_pattern_key(list(ranks), module), config.r)
        return rank, alphas.get(get_pattern_key(list(alphas), module), config.lora_alpha)

    def _split(self, key: str) -> tuple[str, str]:
        """Return the canonical name of the module of a key, and the part of it, such as ``lora_A.weight``."""
        plain = key.removeprefix(_PREFIX).replace(".base_layer.", ".").replace(".modules_to_save.", ".")
        module, found, part = plain.partition(".lora_")
        if found:
            return self._canonical(module) or module, f"lora_{part}"
        module, _, part = plain.rpartition(".")
        return self._canonical(module) or module, part


@contextmanager
def _named_as(
    modules: Mapping[str, str], folder: Path, config: Any, parts: dict[str, dict[str, str]], sizes: Any
) -> Iterator[Path]:
    """Give the adapter's folder, or a copy whose names are those that this transformers gives its modules.

    peft finds modules by their names, which transformers changed more than once.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    names = {
        key: f"{_PREFIX}{modules[module]}.{part}"
        for module, group in parts.items()
        for part, key in group.items()
        if module in modules
    }
    plain = {key: key.replace(".base_layer.", ".").replace(".modules_to_save.", ".") for key in names}
    if names == plain:
        yield folder
        return
    low = {modules[module]: group for module, group in parts.items() if module in modules}
    targets = {
        name: next(key for part, key in group.items() if part.startswith("lora_"))
        for name, group in low.items()
        if any(part.startswith("lora_") for part in group)
    }
    config.target_modules = sorted(targets)
    config.modules_to_save = sorted(set(low) - set(targets)) or None
    config.rank_pattern = {name: sizes(key)[0] for name, key in targets.items()}
    config.alpha_pattern = {name: sizes(key)[1] for name, key in targets.items()}
    with tempfile.TemporaryDirectory(prefix="divprune-adapter-") as renamed:
        with safe_open(folder / _WEIGHTS, framework="pt") as handle:
            save_file({new: handle.get_tensor(old) for old, new in names.items()}, Path(renamed) / _WEIGHTS)
        config.save_pretrained(renamed)
        yield Path(renamed)


@contextmanager
def without_adapter(folder: Path) -> Iterator[Path]:
    """Give a folder that has everything of a checkpoint but an adapter, which transformers would load along."""
    if not (folder / _CONFIG).is_file():
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="divprune-base-") as bare:
        for path in folder.iterdir():
            if not path.name.startswith("adapter_"):
                (Path(bare) / path.name).symlink_to(path.resolve())
        yield Path(bare)
