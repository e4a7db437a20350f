"""What the scripts for TensorRT-RTX share."""

from __future__ import annotations

import tensorrt_rtx as trt

# TensorRT-RTX counts for itself, but its classes are those of TensorRT 11. The two lines differ in ILoggerFinder: with
# the headers of TensorRT 10 the registry takes the library, and no message reaches the log.
API = "11"


class Log(trt.ILogger):
    """Keeps errors, and prints everything if asked to, at once: TensorRT may end the process."""

    def __init__(self, show: bool = False) -> None:
        super().__init__()
        self._show = show
        self._errors: list[str] = []

    def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
        if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
            self._errors.append(msg)
        if self._show:
            print(msg, flush=True)

    def errors(self) -> str:
        """Return the errors since the last question."""
        text, self._errors = "\n".join(self._errors), []
        return text
