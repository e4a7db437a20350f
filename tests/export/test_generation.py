"""generation_config.json: what is understood, what asks for nothing, and what is said to have no counterpart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from raising import refused

from divprune_edge.export.generation import read_generation
from divprune_edge.manifest import GenerationDefaults
from divprune_edge.models.files import CheckpointFiles


def read(folder: Path, **settings: Any) -> GenerationDefaults | None:
    (folder / "generation_config.json").write_text(json.dumps(settings))
    return read_generation(CheckpointFiles(folder))


def test_no_file_and_nothing_said(tmp_path: Path) -> None:
    assert read_generation(CheckpointFiles(tmp_path)) is None
    assert (
        read(tmp_path, eos_token_id=[2, 3], transformers_version="5", num_beams=1, temperature=None) is None
    )


def test_what_is_understood(tmp_path: Path) -> None:
    stated = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05}
    found = read(tmp_path, **stated, max_new_tokens=512, stop_strings="END")
    assert found == GenerationDefaults(**stated, max_new_tokens=512, stop=("END",))
    assert "repetition_penalty 1.05" in str(found)


def test_what_has_no_counterpart_is_named(tmp_path: Path) -> None:
    found = read(tmp_path, num_beams=4, no_repeat_ngram_size=3, min_p=0.1, use_cache=True, a_new_one=[1])
    assert found is not None
    assert found.unsupported == {"num_beams": 4, "no_repeat_ngram_size": 3, "a_new_one": [1]}
    assert "num_beams 4 (not supported)" in str(found)
    sampled = read(tmp_path, do_sample=True, min_p=0.1)
    assert sampled is not None and sampled.unsupported == {"min_p": 0.1}


def test_defaults_of_transformers_ask_for_nothing(tmp_path: Path) -> None:
    """All that a generation config of transformers holds where nothing was set."""
    transformers = pytest.importorskip("transformers")
    stated = transformers.GenerationConfig().to_dict()
    stated |= transformers.GenerationConfig._get_default_generation_params()
    found = read(tmp_path, **json.loads(json.dumps(stated, default=str)))
    assert found is None or set(found.unsupported) <= {"max_length"}


@pytest.mark.parametrize(
    "setting",
    [
        {"temperature": "hot"},
        {"temperature": -1},
        {"top_p": 0},
        {"top_p": 1.5},
        {"top_k": 0.5},
        {"repetition_penalty": 0},
        {"max_new_tokens": 0},
        {"do_sample": "yes"},
        {"stop_strings": [""]},
    ],
)
def test_values_outside_their_range(tmp_path: Path, setting: dict[str, Any]) -> None:
    ((name, value),) = setting.items()
    with refused("generation-config-value", "generation_config.json", f"'{name}'", repr(value)):
        read(tmp_path, **setting)
