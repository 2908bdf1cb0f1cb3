"""The machine that this process runs on (Linux): CPU model, instruction sets, cores, package versions."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

# Instruction sets that change what a kernel can do, by their names in /proc/cpuinfo (x86, then Arm).
NOTABLE_FEATURES = (
    *("sse4_2", "avx", "f16c", "fma", "avx2", "avx_vnni"),
    *("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_int8", "amx_bf16", "amx_tile"),
    *("asimd", "fphp", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2"),
)
PACKAGES = (
    *("bitsmith", "numpy", "apache-tvm", "torch", "onnx"),
    *("onnxscript", "onnxruntime", "optuna", "scipy"),
)

USUAL_CACHES = (32 << 10, 512 << 10, 16 << 20)


@dataclass(frozen=True)
class Machine:
    """cpu      model name, with family, model and stepping where the kernel tells them
    cores     CPUs that this process may use (affinity and cgroup quota)
    features  notable instruction sets, sorted
    memory_bytes   physical memory, 0 when unknown
    versions  package -> version, of those installed
    """

    cpu: str
    cores: int
    features: tuple[str, ...]
    memory_bytes: int
    system: str
    python: str
    versions: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "features": list(self.features), "versions": dict(self.versions)}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Machine:
        return Machine(**{**data, "features": tuple(data["features"]), "versions": dict(data["versions"])})


@lru_cache(maxsize=1)
def cpuinfo() -> Mapping[str, str]:
    """The first processor's entries of /proc/cpuinfo; empty where there is none."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {}
    first = text.split("\n\n", 1)[0]
    pairs = (line.split(":", 1) for line in first.splitlines() if ":" in line)
    return {k.strip(): v.strip() for k, v in pairs}


def cpu_flags() -> frozenset[str]:
    """Every feature flag that the kernel reports (x86: `flags`, Arm: `Features`)."""
    info = cpuinfo()
    return frozenset((info.get("flags") or info.get("Features") or "").split())


def cpu_model() -> str:
    """Model name and its numbers: virtual machines give one name, such as "AMD EPYC", to different chips."""
    info = cpuinfo()
    name = info.get("model name") or info.get("Hardware") or platform.processor() or platform.machine()
    keys = ("cpu family", "model", "stepping", "CPU implementer", "CPU part", "CPU variant", "CPU revision")
    numbers = "/".join(info[k] for k in keys if k in info)
    return f"{name} ({numbers})" if numbers else name


def usable_cores() -> int:
    """CPUs of this process's affinity mask, or fewer when a cgroup quota allows less."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        limit = cores if quota == "max" else max(1, round(int(quota) / int(period)))
    except (OSError, ValueError):
        limit = cores
    return min(cores, limit)


def cache_sizes() -> tuple[int, ...]:
    """Bytes of the data caches that a core of this process sees, smallest first; a usual x86 core's where the
    system does not tell.
    """
    core = min(os.sched_getaffinity(0))
    found: dict[int, int] = {}
    for index in Path(f"/sys/devices/system/cpu/cpu{core}/cache").glob("index*"):
        try:
            kind, level, size = ((index / name).read_text().strip() for name in ("type", "level", "size"))
            if kind in ("Data", "Unified"):
                found[int(level)] = int(size.removesuffix("K")) * 1024
        except (OSError, ValueError):
            continue
    return tuple(sorted(found.values())) or USUAL_CACHES


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0


def installed_versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Versions of the packages that are installed; nothing is imported."""
    found = ((package, _version(package)) for package in packages)
    return {package: version for package, version in found if version}


@lru_cache
def _version(package: str) -> str:
    """Nothing when it is not installed. Kept: asking takes 6 ms."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def this_machine() -> Machine:
    flags = cpu_flags()
    return Machine(
        cpu=cpu_model(),
        cores=usable_cores(),
        features=tuple(sorted(f for f in NOTABLE_FEATURES if f in flags)),
        memory_bytes=_memory_bytes(),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        versions=installed_versions(),
    )
