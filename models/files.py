"""The JSON and text files of a Hugging Face checkpoint folder, read with errors that name the file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from divprune_edge.errors import UserError
from divprune_edge.strict_json import is_file, read_json, read_text

Config = Mapping[str, Any]
Shapes = dict[str, tuple[int, ...]]
"""Name of a weight -> its shape."""

MOST_BYTES = 64 << 20
"""Of one file: a tokenizer of 262,000 tokens has 33 MB."""
LARGEST = 1 << 31
"""More than any size in a config."""


@dataclass(frozen=True)
class HubSource:
    """A repository of the hub. ``left_out`` are weights in other formats that it has and that were not downloaded."""

    name: str
    revision: str | None = None
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class CheckpointFiles:
    """A checkpoint folder, seen through its small files; ``hub`` is where it was downloaded from, if it was."""

    folder: Path
    hub: HubSource | None = None

    @property
    def title(self) -> str:
        """What to call the checkpoint in a sentence: its hub id or its folder."""
        return str(self.folder) if self.hub is None else self.hub.name

    @property
    def own_copy(self) -> str:
        """The first step of an advice to change files: nothing for a folder, a download for the hub's cache."""
        if self.hub is None:
            return ""
        revision = "" if self.hub.revision is None else f", revision='{self.hub.revision}'"
        return (
            "download all of it into a FOLDER of your own with huggingface_hub's "
            f"snapshot_download('{self.hub.name}'{revision}, local_dir='FOLDER'), "
        )

    def path(self, name: str) -> Path | None:
        """Return the path of ``name`` if the folder has it."""
        path = self.folder / name
        return path if is_file(path) else None

    def text(self, name: str) -> str | None:
        """Return the file's text, or None where there is no such file."""
        path = self.path(name)
        if path is None:
            return None
        return read_text(path, code="checkpoint-file-invalid", advice="download it again", most=MOST_BYTES)

    def json(self, name: str) -> dict[str, Any] | None:
        """Return the file's JSON object, or None where there is no such file."""
        path = self.path(name)
        if path is None:
            return None
        data = read_json(
            path,
            code="checkpoint-file-invalid",
            advice="download it again",
            most=MOST_BYTES,
        )
        if not isinstance(data, dict):
            raise UserError(
                f"'{self.folder / name}' holds a JSON {type(data).__name__}, expected an object.",
                code="checkpoint-file-invalid",
            )
        return data

    def required_json(self, name: str, purpose: str) -> dict[str, Any]:
        """Return the file's JSON object.

        Raises:
            UserError: the folder has no such file; ``purpose`` says what it is needed for.
        """
        data = self.json(name)
        if data is None:
            raise UserError(
                f"'{self.folder}' has no {name}, which {purpose}.", code="checkpoint-file-missing"
            )
        return data


def setting(config: Config, name: str, default: Any, kind: type | tuple[type, ...]) -> Any:
    """Return ``config[name]``, or ``default`` where it is absent or null, checked to be of ``kind``.

    Raises:
        UserError: the value has another type.
    """
    value = config.get(name)
    if value is None:
        return default
    if isinstance(value, bool) and kind in (int, float):
        raise UserError(f"config.json: '{name}' is {value}, expected a number.", code="config-value-invalid")
    if kind is not float and isinstance(value, int) and abs(value) > LARGEST:
        raise UserError(
            f"config.json: '{name}' is {value}, expected a number that a model can have.",
            code="config-value-invalid",
        )
    if kind is float and isinstance(value, int):
        return float(value)
    if not isinstance(value, kind):
        expected = kind.__name__ if isinstance(kind, type) else " or ".join(k.__name__ for k in kind)
        raise UserError(
            f"config.json: '{name}' is {_short(value)}, expected {expected}.", code="config-value-invalid"
        )
    return value


def count(config: Config, name: str, default: int, most: int = LARGEST) -> int:
    """Return a positive integer setting.

    Raises:
        UserError: not an integer, below 1, or above ``most``.
    """
    value = int(setting(config, name, default, int))
    if value < 1:
        raise UserError(
            f"config.json: '{name}' is {value}, expected at least 1.", code="config-value-invalid"
        )
    if value > most:
        raise UserError(
            f"config.json: '{name}' is {value}, expected at most {most}.", code="config-value-invalid"
        )
    return value


def layers(config: Config, default: int) -> int:
    """Return ``num_hidden_layers``, of which a thousand would be ten times those of any model.

    Raises:
        UserError: as :func:`count`.
    """
    return count(config, "num_hidden_layers", default, 1000)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
