"""A Hugging Face checkpoint folder on disk: small files, and tensors read one at a time from safetensors."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from divprune_edge.errors import UserError
from divprune_edge.manifest import AdapterSource
from divprune_edge.models.files import CheckpointFiles, HubSource, Shapes
from divprune_edge.strict_json import is_file, is_folder

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""Weight types that can be exported: safetensors' name -> the manifest's."""


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of the checkpoint as its file describes it; ``dtype`` is safetensors' name."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]


class Checkpoint:
    """A checkpoint folder, opened and checked: every shard is there, whole, and readable.

    Tensors are read on demand, so a checkpoint may be larger than memory. Close it (or use ``with``) to
    release the files.
    """

    def __init__(
        self, folder: Path, name: str, revision: str | None = None, hub: HubSource | None = None
    ) -> None:
        if not is_folder(folder):
            raise UserError(
                f"There is no checkpoint folder '{folder}': give a folder or a hub id to --model.",
                code="checkpoint-missing",
            )
        self.folder = folder
        self.name = name
        self.revision = revision
        self.files = CheckpointFiles(folder, hub)
        self.config: dict[str, Any] = self.files.required_json("config.json", "says what model this is")
        self._open = ExitStack()
        self._handles: dict[Path, Any] = {}

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def adapter_source(self) -> AdapterSource | None:
        """The adapter that is merged into the weights, if one is, as the manifest names it."""
        return None

    def close(self) -> None:
        """Release the weight files."""
        self._open.close()
        self._handles.clear()

    @cached_property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """Every tensor by name.

        Raises:
            UserError: no safetensors, a missing or truncated shard, or a tensor that the index names and no
                shard has.
        """
        found: dict[str, StoredTensor] = {}
        for file in self._shards():
            handle = self._handle(file)
            for name in handle.keys():  # noqa: SIM118 - not a mapping
                view = handle.get_slice(name)
                found[name] = StoredTensor(name, file, view.get_dtype(), tuple(view.get_shape()))
        lost = sorted(set((self._index or {}).get("weight_map", {})) - set(found))
        if lost:
            raise UserError(
                f"{INDEX} names '{lost[0]}', but no shard has it: download the checkpoint again.",
                code="weights-incomplete",
            )
        return found

    def read(self, name: str) -> npt.NDArray[Any]:
        """Return one tensor in its stored type (bfloat16 as ``ml_dtypes.bfloat16``)."""
        tensor = self.tensors[name]
        if tensor.dtype == "BF16":
            import ml_dtypes  # registers the type with NumPy

            _ = ml_dtypes.bfloat16
        return np.asarray(self._handle(tensor.file).get_tensor(name))

    def check(self, expected: Shapes) -> None:
        """Check that every expected tensor is there, a float, and of the right shape.

        Raises:
            UserError: the first one that is not, by name.
        """
        for name, shape in expected.items():
            tensor = self.tensors.get(name)
            if tensor is None:
                raise UserError(
                    f"The checkpoint lacks the weight '{name}' that its config asks for: a shard is missing, "
                    "download it again.",
                    code="weights-incomplete",
                )
            if tensor.dtype not in FLOATS:
                raise UserError(
                    f"Weight '{name}' is stored as {tensor.dtype}, supported are {', '.join(FLOATS)}: export the "
                    "unquantised checkpoint.",
                    code="weights-dtype-unsupported",
                )
            if tensor.shape != shape:
                raise UserError(
                    f"Weight '{name}' has shape {list(tensor.shape)}, but config.json implies {list(shape)}: "
                    "weights and config do not belong together.",
                    code="weights-shape-unfit",
                )

    def rows(self, name: str) -> int:
        """Return the first dimension of a tensor."""
        return self.tensors[name].shape[0]

    @cached_property
    def _index(self) -> dict[str, Any] | None:
        """The index of the shards; as in transformers, a single file outranks it."""
        return None if self.files.path(SINGLE) is not None else self.files.json(INDEX)

    def _shards(self) -> list[Path]:
        index = self._index
        if index is None:
            if self.files.path(SINGLE) is None:
                self._refuse_other_formats()
            return [self.folder / SINGLE]
        weight_map = index.get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise UserError(
                f"'{self.folder / INDEX}' has no weight_map: download the checkpoint again.",
                code="weights-incomplete",
            )
        shards = sorted({str(file) for file in weight_map.values()})
        for shard in shards:
            if Path(shard).name != shard or not is_file(self.folder / shard):
                raise UserError(
                    f"Shard '{shard}' of {len(shards)} is missing from '{self.folder}': download it again.",
                    code="weights-incomplete",
                )
        return [self.folder / shard for shard in shards]

    def _refuse_other_formats(self) -> None:
        pickles = sorted(
            path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in self.folder.glob(pattern)
        )
        if self.files.hub is not None:
            pickles += self.files.hub.left_out
        if pickles:
            raise UserError(
                f"'{self.files.title}' has only pickle weights ({pickles[0]}), which can run code when loaded: "
                f"{self.files.own_copy}write safetensors beside them with transformers' "
                "LlavaForConditionalGeneration.from_pretrained('FOLDER').save_pretrained('FOLDER'), and export FOLDER.",
                code="weights-pickled",
            )
        raise UserError(
            f"'{self.folder}' has no weights: expected {SINGLE} or {INDEX} with its shards.",
            code="weights-missing",
        )

    def _handle(self, file: Path) -> Any:
        if file not in self._handles:
            from safetensors import SafetensorError, safe_open

            try:
                self._handles[file] = self._open.enter_context(safe_open(file, framework="numpy"))
            except (SafetensorError, OSError) as error:
                raise UserError(
                    f"'{file}' is not a whole safetensors file ({error}): it is truncated or damaged, download "
                    "it again.",
                    code="weights-damaged",
                ) from error
        return self._handles[file]
