"""onnxruntime-genai on the language model alone, int4 by its own model builder."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from bench.engines.engine import Clock, Engine, SpeedJob, Times, text_ids


def prepare(language: Path, folder: Path, block: int) -> None:
    """Build an int4 model for the CPU from a Hugging Face decoder, in blocks of ``block`` (its own default is 32)."""
    builder = [sys.executable, "-m", "onnxruntime_genai.models.builder"]
    what = ["-i", str(language), "-o", str(folder), "-p", "int4", "-e", "cpu", "-c", str(folder / "cache")]
    what += ["--extra_options", f"block_size={block}"]
    subprocess.run([*builder, *what], check=True, capture_output=True, text=True)


def open_engine(job: SpeedJob) -> Engine:
    """Load the built model."""
    return GenAi(job)


class GenAi:
    """The generator, with the job's number of threads (its default is one)."""

    def __init__(self, job: SpeedJob) -> None:
        import onnxruntime_genai

        self._genai, self._job = onnxruntime_genai, job
        config = Path(job.folder) / "genai_config.json"
        data = json.loads(config.read_text())
        data["model"]["decoder"]["session_options"]["intra_op_num_threads"] = job.threads
        config.write_text(json.dumps(data))
        self._model = onnxruntime_genai.Model(job.folder)

    def versions(self) -> dict[str, str]:
        """See :class:`bench.engines.engine.Engine`."""
        return {"onnxruntime-genai": self._genai.__version__}

    def measure(self, visual: int) -> Times:
        """Prefill as many text ids, then decode greedily."""
        job = self._job
        ids = text_ids(job, job.text + visual)
        parameters = self._genai.GeneratorParams(self._model)
        length = len(ids) + job.decode + 2
        parameters.set_search_options(max_length=length, min_length=length)
        generator = self._genai.Generator(self._model, parameters)
        clock = Clock()
        generator.append_tokens(ids.astype("int32"))
        generator.generate_next_token()
        prefill = clock.lap()
        for _ in range(job.decode):
            generator.generate_next_token()
        return {"prefill": prefill, "decode": clock.lap() / job.decode}
