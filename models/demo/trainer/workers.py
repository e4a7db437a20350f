"""Several training processes with one thread each: on a busy machine they wait for each other once per
step, where the threads of one process would wait at every operator.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import nn


def start(arguments: list[str], processes: int, module: str) -> int:
    """Run the trainer `module` as `processes` processes; returns the first failure's exit code, or 0."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", module, *arguments]
    shared = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    shared |= {"GLOO_SOCKET_IFNAME": "lo"}
    workers = [subprocess.Popen(command, env=shared | {"RANK": str(rank)}) for rank in range(processes)]
    try:
        return max(abs(worker.wait()) for worker in workers)
    finally:
        for worker in workers:
            worker.terminate()


def join() -> None:
    """Meet the other processes, if this one was started by `start`."""
    if "RANK" in os.environ:
        dist.init_process_group("gloo")


def rank() -> int:
    """This process's number, 0 for the one that writes."""
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace every gradient by its mean over the processes."""
    if count() == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= count()
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))
