"""The number format that training computes in: bf16 where the hardware multiplies it, float32 elsewhere."""

from __future__ import annotations

from pathlib import Path

import torch


def training_precision(*, wanted: str, device: torch.device) -> torch.dtype:
    """The dtype for `auto`, `float32` or `bfloat16` on a device."""
    if wanted != "auto":
        return torch.bfloat16 if wanted == "bfloat16" else torch.float32
    fast = torch.cuda.is_bf16_supported() if device.type == "cuda" else _cpu_multiplies_bf16()
    return torch.bfloat16 if fast else torch.float32


def _cpu_multiplies_bf16() -> bool:
    # PyTorch emulates bf16 on older CPUs, slower than float32; only the instruction sets below are faster.
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text() if cpuinfo.is_file() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags
