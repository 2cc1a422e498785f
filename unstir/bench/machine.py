"""The machine that figures are of.

Knows: processor, threads, versions.
Does not know: what is measured on it.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("torch", "diffusers", "numpy")


def machine() -> dict[str, Any]:
    """Processor, cores, threads of torch, and versions; None for a package that is not installed."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: version_of(name) for name in _PACKAGES},
    }


def processor() -> str:
    """The processor's name, as the system knows it."""
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text("utf-8", "replace").splitlines() if facts.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(names), "") or platform.processor() or platform.machine()


def version_of(package: str) -> str | None:
    """Of an installed package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def told(facts: dict[str, Any]) -> str:
    """One line of ``machine()``."""
    versions = ", ".join(f"{name} {facts[name]}" for name in ("python", *_PACKAGES) if facts[name] is not None)
    return f"{facts['processor']}, {facts['cores']} cores, {facts['threads']} threads; {versions}"
