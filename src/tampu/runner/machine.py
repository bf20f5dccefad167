"""What the machine gives this process: cores and memory, container limits included. Reads, decides nothing."""

from __future__ import annotations

import os
from pathlib import Path

CPU_FOLDER = Path("/sys/devices/system/cpu")
CGROUP_FOLDER = Path("/sys/fs/cgroup")
MEMINFO_FILE = Path("/proc/meminfo")


def num_physical_cores() -> int:
    """Physical cores this process may run on, at least one: affinity and the container's CPU quota are respected."""
    cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = {_core_of(cpu) for cpu in cpus}
    quota = _cpu_quota()
    count = len(cores) if quota is None else min(len(cores), int(quota))
    return max(1, count)


def _core_of(cpu: int) -> str:
    # Two hyper-threads of one core list the same siblings.
    siblings = _read(CPU_FOLDER / f"cpu{cpu}" / "topology" / "thread_siblings_list")
    return siblings or str(cpu)


def _cpu_quota() -> float | None:
    """Cores' worth of time the container may use, None without a limit."""
    fields = _read(CGROUP_FOLDER / "cpu.max").split()
    if len(fields) != 2 or not (fields[0].isdigit() and fields[1].isdigit()) or int(fields[1]) == 0:
        return None
    return int(fields[0]) / int(fields[1])


def available_memory_bytes() -> int:
    """Memory that can be taken without swapping, within the container's limit."""
    available = _meminfo_available()
    limit = _read(CGROUP_FOLDER / "memory.max")
    if limit.isdigit():
        used = _read(CGROUP_FOLDER / "memory.current")
        available = min(available, max(0, int(limit) - (int(used) if used.isdigit() else 0)))
    return available


def _meminfo_available() -> int:
    for line in _read(MEMINFO_FILE).splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
