"""``--data lmms:TASK``: a task of lmms-eval, asked with every method.

lmms-eval loads the documents, words the questions and scores the answers; this runtime answers. It is imported only
when a task is run: it brings PyTorch, which the runtime itself does without.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from divprune_edge.errors import UserError, did_you_mean
from divprune_edge.hints import install
from divprune_edge.runtime.bundle import Bundle
from divprune_edge.runtime.lab.evaluation.dataset import LMMS
from divprune_edge.runtime.lab.evaluation.evaluate import run_facts
from divprune_edge.runtime.lab.evaluation.methods import EvaluatedMethod
from divprune_edge.runtime.lab.evaluation.requests import Answers
from divprune_edge.runtime.lab.evaluation.results import journal_in
from divprune_edge.runtime.lab.evaluation.runner import Runner
from divprune_edge.runtime.lab.evaluation.task_results import TaskRow, scores_of, task_row

if TYPE_CHECKING:
    from divprune_edge.runtime.lab.evaluation.lmms_model import DivPruneEdge

MODEL = "divprune_edge"
"""Our name among lmms-eval's models."""

OnAsked = Callable[[int, int], None]


def manifest() -> object:
    """Return what lmms-eval's registry wants to know; the entry point ``lmms_eval.models`` names this function."""
    from lmms_eval.models.registry_v2 import ModelManifest

    path = "divprune_edge.runtime.lab.evaluation.lmms_model.DivPruneEdge"
    return ModelManifest(model_id=MODEL, simple_class_path=path)


@dataclass(frozen=True)
class Task:
    """A task, found in lmms-eval's index: ``manager`` is its TaskManager."""

    name: str
    manager: Any


def find_task(source: str) -> Task:
    """Return the task of ``lmms:NAME`` (one that comes with lmms-eval) or ``lmms:FILE.yaml`` (one's own).

    Raises:
        UserError: lmms-eval is not installed, or has no such task; the closest name is suggested.
    """
    named = source.removeprefix(LMMS)
    if importlib.util.find_spec("lmms_eval") is None:
        raise UserError(
            f"'{source}' is a task of lmms-eval, which is not installed: {install('lmms')}.",
            code="lmms-eval-missing",
        )
    file = Path(named) if named.endswith((".yaml", ".yml")) else None
    if file is not None and not file.is_file():
        raise UserError(
            f"There is no file '{file}': give a task's YAML file, or the name of a task.", code="task-missing"
        )
    with _to_stderr():
        import lmms_eval.models  # noqa: F401  # its import sets how much lmms-eval says
        from lmms_eval.tasks import TaskManager

        if file is None:
            manager = TaskManager(model_name=MODEL)
            return Task(_known(named, manager.all_tasks), manager)
        manager = TaskManager(model_name=MODEL, include_path=str(file.parent), include_defaults=False)
        for name, entry in manager.task_index.items():
            if entry["yaml_path"] != -1 and file.samefile(entry["yaml_path"]):
                return Task(name, manager)
    raise UserError(
        f"'{file}' describes no task: it needs 'task: NAME' and what lmms-eval asks for beyond that.",
        code="task-invalid",
    )


def _known(name: str, tasks: Sequence[str]) -> str:
    if name in tasks:
        return name
    raise UserError(
        f"lmms-eval has no task '{name}'{did_you_mean(name, tasks)}: 'lmms-eval tasks list' shows its {len(tasks)}.",
        code="task-unknown",
    )


def evaluate_task(
    bundle: Bundle,
    task: Task,
    methods: Sequence[EvaluatedMethod],
    folder: Path,
    *,
    backend: str = "cpu",
    threads: int | None = None,
    max_tokens: int | None = None,
    limit: int | None = None,
    on_asked: OnAsked = lambda done, total: None,
) -> tuple[list[TaskRow], list[str]]:
    """Ask what was not asked yet and return one row per method, and the task's settings that have no meaning here.

    Args:
        bundle: the opened bundle.
        task: from :func:`find_task`.
        methods: the selectors and baselines.
        folder: where the records are kept; a run that was interrupted goes on from there.
        backend: ``cpu`` or ``cuda``.
        threads: CPU threads; None takes all cores.
        max_tokens: longest answer; None takes what the task says.
        limit: number of documents of each (sub-)task; None takes all.
        on_asked: told how many questions are answered, of how many.

    Raises:
        UserError: the task's documents cannot be had, it asks for what the runtime does not do, it reports no number,
            or the folder holds another evaluation.
    """
    if limit is not None and limit < 1:
        raise UserError(f"{limit} documents were asked for, expected at least 1.", code="count-out-of-range")
    runner = Runner(bundle, methods, backend, threads)
    facts = run_facts(bundle, f"{LMMS}{task.name}", runner.backend, threads, max_tokens)
    with journal_in(folder, facts) as journal, _to_stderr():
        answers = Answers(runner, methods, journal, max_tokens, on_asked)
        from divprune_edge.runtime.lab.evaluation.lmms_model import DivPruneEdge

        rows = []
        for method in methods:  # the first one asks for all, the others find their answers
            model = DivPruneEdge.over(answers, method)
            results = _scored(model, task, folder, limit)
            scores = scores_of(results)
            if not scores:
                raise UserError(
                    f"The task '{task.name}' reports no number (it may write a file to be scored elsewhere): choose "
                    "another task.",
                    code="task-without-number",
                )
            rows.append(task_row(method, scores, model.records))
    return rows, sorted(answers.ignored)


def _scored(model: DivPruneEdge, task: Task, folder: Path, limit: int | None) -> dict[str, dict[str, Any]]:
    from lmms_eval.evaluator import simple_evaluate

    # What tasks read of lmms-eval's own command line: where to write, and that scoring needs no images.
    arguments = argparse.Namespace(output_path=str(folder), process_with_media=False)
    try:
        found = simple_evaluate(
            model=model,
            tasks=[task.name],
            task_manager=task.manager,
            limit=limit,
            log_samples=False,
            cli_args=arguments,
        )
    except UserError:
        raise
    except NotImplementedError as error:
        raise UserError(f"'{task.name}': {error}", code="task-unsupported") from None
    except Exception as error:
        if model.records:
            raise  # answered, but not scored: not something that a user can mend
        attempt = getattr(error, "last_attempt", None)  # lmms-eval tries several times
        cause = attempt.exception() if attempt is not None else error
        said = (str(cause).strip().splitlines() or [""])[0]
        raise UserError(
            f"The task '{task.name}' cannot be prepared ({type(cause).__name__}: {said}): lmms-eval fetches its "
            "documents from the hub, or finds them in its cache.",
            code="task-not-prepared",
        ) from error
    results: dict[str, dict[str, Any]] = found["results"]
    return results


@contextlib.contextmanager
def _to_stderr() -> Iterator[None]:
    """Send what lmms-eval prints where it belongs: standard output is for results."""
    with contextlib.redirect_stdout(sys.stderr):
        yield
