"""The part of lmms-eval 0.7.3 that the adapter touches, as recorded: names, parameters, shapes of what goes across.

It stands in where lmms-eval is not installed; where it is, ``test_lmms.py`` holds it against the real thing.
"""

from __future__ import annotations

import abc
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, ClassVar

import pytest

NAMES: dict[str, tuple[str, ...]] = {
    "lmms_eval.api.model": ("lmms",),
    "lmms_eval.api.instance": ("Instance",),
    "lmms_eval.models.registry_v2": ("ModelManifest",),
    "lmms_eval.tasks": ("TaskManager",),
    "lmms_eval.evaluator": ("simple_evaluate",),
}
"""What is imported from where."""


class lmms(abc.ABC):  # noqa: N801
    """A model."""

    is_simple = True

    def __init__(self) -> None:
        self.task_dict: dict[str, Any] = {}

    @abc.abstractmethod
    def loglikelihood(self, requests: Any) -> Any:
        """Score."""

    @abc.abstractmethod
    def generate_until(self, requests: Any) -> Any:
        """Generate."""

    @abc.abstractmethod
    def generate_until_multi_round(self, requests: Any) -> Any:
        """Talk."""


@dataclass
class Instance:
    """A request."""

    request_type: str
    arguments: tuple[Any, ...]
    idx: int
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def args(self) -> tuple[Any, ...]:
        """The arguments."""
        return self.arguments


@dataclass(frozen=True)
class ModelManifest:
    """An entry of the registry."""

    model_id: str
    simple_class_path: str | None = None


class TaskManager:
    """The index of tasks; a test says what is in it."""

    tasks: ClassVar[dict[str, Callable[[Any], dict[str, Any]]]] = {}

    def __init__(
        self,
        verbosity: str = "INFO",
        include_path: str | None = None,
        include_defaults: bool = True,
        model_name: str | None = None,
    ) -> None:
        self.all_tasks = sorted(self.tasks)
        self.task_index = {name: {"yaml_path": f"{include_path}/{name}.yaml"} for name in self.tasks}


def simple_evaluate(
    model: Any,
    tasks: list[str],
    limit: int | None = None,
    log_samples: bool = True,
    task_manager: Any = None,
    cli_args: Any = None,
) -> dict[str, Any]:
    """Run what the test put under the task's name."""
    del log_samples, cli_args, limit
    print("lmms-eval talks on standard output")
    (name,) = tasks
    return {"results": {name: {"alias": name, "samples": 2, **task_manager.tasks[name](model)}}}


def install(monkeypatch: pytest.MonkeyPatch, tasks: dict[str, Callable[[Any], dict[str, Any]]]) -> None:
    """Let ``import lmms_eval`` find this file's names for one test."""
    monkeypatch.setattr(TaskManager, "tasks", tasks)
    for path in ("lmms_eval", "lmms_eval.api", "lmms_eval.models", *NAMES):
        module = ModuleType(path)
        module.__spec__ = ModuleSpec(path, None)
        module.__path__ = []
        for name in NAMES.get(path, ()):
            setattr(module, name, globals()[name])
        monkeypatch.setitem(sys.modules, path, module)
    # The model subclasses the stand-in: it is read anew, and what was there before comes back after the test.
    adapter = "divprune_edge.runtime.lab.evaluation.lmms_model"
    monkeypatch.setitem(sys.modules, adapter, ModuleType(adapter))
    del sys.modules[adapter]
