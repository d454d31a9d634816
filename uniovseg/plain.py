"""Records as plain tensors, lists and dicts: a file of them is read with ``torch.load(..., weights_only=True)``, by anyone."""

import dataclasses
import io
from typing import Any

import numpy as np
import torch
from torch import Tensor


def plain(value: Any) -> Any:
    """A record, at any depth, as dicts by field name; arrays and bytes as tensors on the CPU, tuples as lists."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(value))
    if isinstance(value, bytes):
        return torch.from_numpy(np.frombuffer(value, np.uint8).copy())
    if dataclasses.is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def plain_bytes(value: Any) -> bytes:
    """`plain` of a value as the bytes of a .pt file."""
    buffer = io.BytesIO()
    torch.save(plain(value), buffer)
    return buffer.getvalue()
