"""Set up torch for the whole process, and name everything here that decides how results are rounded."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

import torch

import msh
from msh.inference.computing import flushes_denormal
from msh.training.config import RunConfig

RESTRICTING = ("MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "OPENBLAS_CORETYPE")
"""Environment variables that choose the instructions of torch's libraries; torch's own choice is its capability."""


def set_up_torch(config: RunConfig) -> None:
    """Apply `flush_denormal` and `threads` of a run's config.

    Call it before any tensor work: torch's threads inherit this setting from the thread that starts them.

    Args:
        config: the run's.
    """
    torch.set_flush_denormal(config.flush_denormal)
    _set_threads(config.threads)
    if not torch.cuda.is_available():  # optimizers ask in each step, and Lightning lets torch search NVML each time
        os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"


_BEFORE: dict[tuple[int, str | None], tuple[int, str | None]] = {}
"""The threads and OMP_NUM_THREADS that the last run of this process set, to those before it."""


def _set_threads(number: int | None) -> None:
    """Set torch's threads; None: leave them, or undo what an earlier run, such as another job of a sweep, has set.

    Without OMP_NUM_THREADS, Lightning would divide the cores by the processes.
    """
    now = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    before = _BEFORE.pop(now, now)
    _BEFORE.clear()
    if number is not None:
        _BEFORE[number, str(number)] = before
    elif before == now:
        return
    threads, variable = before if number is None else (number, str(number))
    torch.set_num_threads(threads)
    os.environ.pop("OMP_NUM_THREADS", None)
    if variable is not None:
        os.environ["OMP_NUM_THREADS"] = variable


@dataclass(frozen=True)
class Machine:
    """A machine that computes results. Equal machines give the same bits; others round differently.

    Attributes:
        setting: device, threads, versions of torch and msh, and treatment of subnormal numbers.
        processor: its model and the instructions in use; None in records of earlier releases.
    """

    setting: str
    processor: str | None

    def __str__(self) -> str:
        return f"{self.setting}, {self.processor or 'processor not recorded'}"


def machine(device: torch.device) -> Machine:
    """Describe this process's machine.

    Args:
        device: the one that computes.
    """
    flushed = ", subnormal numbers flushed" if flushes_denormal() else ""
    versions = f"torch {torch.__version__}, msh {msh.__version__}"
    setting = f"{device.type}, {torch.get_num_threads()} threads, {versions}{flushed}"
    parts = [cpu_model(), torch.backends.cpu.get_cpu_capability()]
    parts += [f"{name}={os.environ[name]}" for name in RESTRICTING if name in os.environ]
    if device.type == "cuda":
        parts.insert(0, torch.cuda.get_device_name(device))
    return Machine(setting, ", ".join(parts))


def cpu_model() -> str:
    """Name the processor's model, with the numbers that distinguish models of one name."""
    info = Path("/proc/cpuinfo")
    fields: dict[str, str] = {}
    for line in info.read_text().splitlines() if info.is_file() else ():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    name = fields.get("model name") or platform.processor() or platform.machine()
    numbers = [f"{key} {fields[key]}" for key in ("cpu family", "model") if key in fields]
    return " ".join([name, *numbers])
