"""What the speed benchmark runs: one file per engine, each in a process of its own."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from bench.engines.engine import Engine, SpeedJob

MODULES = ("ours", "transformers", "openvino", "genai", "llamacpp")
"""Modules of this folder, each with ``open_engine(job) -> Engine``."""


def open_engine(job: SpeedJob) -> Engine:
    """Load the engine of a job."""
    if job.engine not in MODULES:
        raise ValueError(f"no engine '{job.engine}'")
    module: Any = import_module(f"bench.engines.{job.engine}_")
    engine: Engine = module.open_engine(job)
    return engine
