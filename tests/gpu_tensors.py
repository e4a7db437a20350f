"""Arrays to a GPU and back, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def to_gpu(array: npt.NDArray[Any]) -> Any:
    """A tensor of the same bits; torch and NumPy share no bfloat16."""
    import torch

    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16).cuda()
    return torch.from_numpy(array.copy()).cuda()


def to_numpy(tensor: Any, dtype: Any) -> npt.NDArray[Any]:
    import torch

    if tensor.dtype == torch.bfloat16:
        return np.asarray(tensor.view(torch.int16).cpu().numpy()).view(dtype)
    return np.asarray(tensor.cpu().numpy())
