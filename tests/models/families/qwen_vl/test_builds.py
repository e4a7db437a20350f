"""A real TensorRT parses and builds the towers: TensorRT-RTX, which needs no GPU for that (level E2b)."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from plugins_emulation import ROOT
from qwen_towers import QWEN2_5, QWEN3, reference_tower, write_tower

from divprune_edge.export.formats import find_format
from divprune_edge.models.families.qwen_vl.inputs import encoder_inputs
from divprune_edge.models.families.qwen_vl.spec import read_qwen_vision

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="unproven: no TensorRT-RTX (pip install '.[rtx]')",
)
# In a process of its own: one process builds with one TensorRT, and a failure of it may end the process.
SCRIPT = """
import json, sys
from pathlib import Path
from divprune_edge.models.tensorrt import TENSORRT_RTX
from divprune_edge.runtime.engines import edition
edition.use(TENSORRT_RTX)
from divprune_edge.runtime.engines import compile as compiler
from divprune_edge.runtime.engines.graphs import BuildJob
from divprune_edge.models.profiles import Shapes
from divprune_edge.runtime.engines.progress import BuildProgress
path, shapes = Path(sys.argv[1]), json.loads(sys.argv[2])
profile = {name: Shapes(min=least, opt=usual, max=most) for name, (least, usual, most) in shapes.items()}
for sm in TENSORRT_RTX.sms:
    data = tuple(path.parent.glob("*.data"))
    job = BuildJob("vision", path, (profile,), False, None, None, data, (sm,))
    print(sm, memoryview(compiler.make_engine(job, None, BuildProgress())).nbytes)
"""


@pytest.mark.parametrize("config", [QWEN3, QWEN2_5], ids=["qwen3", "qwen2_5"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int4"])
def test_every_precision_builds(config: dict[str, Any], precision: Any, tmp_path: Path) -> None:
    config = config | {"hidden_size": 64, "intermediate_size": 128}
    format = find_format(precision, 64, half=True)
    path = write_tower(tmp_path, config, reference_tower(config), format)
    spans = {"frames": (1, 1, 2), "patches": (4, 256, 1024), "windows": (1, 4, 128)}
    shapes = {
        name: [[spans[d][i] if isinstance(d, str) else d for d in shape] for i in range(3)]
        for name, (_, shape) in encoder_inputs(read_qwen_vision(config, "qwen3_vl")).items()
    }
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, path, json.dumps(shapes)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    built = [line.split() for line in result.stdout.splitlines()]
    assert len(built) == 5
    assert all(int(size) > 1000 for _, size in built)
