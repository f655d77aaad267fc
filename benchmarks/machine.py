"""The machine that a measurement was made on, in words: shared by the scripts beside it."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def machine() -> str:
    """Return cores, processor and GPU of this machine."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{len(os.sched_getaffinity(0))} cores of {_processor()}, {gpu}, {torch.get_num_threads()} threads"


def _processor() -> str:
    cpus = Path("/proc/cpuinfo")
    lines = cpus.read_text(encoding="utf-8").splitlines() if cpus.exists() else []
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())
