"""Which processes still live, so that what a killed one left behind can be told from work in progress."""

from __future__ import annotations

import subprocess
from pathlib import Path

PROC = Path("/proc")


def start_of(pid: int) -> str:
    """When process `pid` of this machine started, as an opaque text; "" if there is no such process.

    A process id is used again after a while, and after a restart of the machine at once; the pair of
    id and start is not.
    """
    if (PROC / "self" / "stat").exists():
        return _from_proc(pid)
    try:
        answer = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "unknown"  # neither /proc nor ps: every process counts as alive, and none is declared dead by mistake
    return answer.stdout.strip()


def _from_proc(pid: int) -> str:
    try:
        stat = (PROC / str(pid) / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    # The second field is the name in brackets, and may hold spaces and brackets of its own.
    fields = stat.rpartition(")")[2].split()
    state, ticks_since_boot = fields[0], fields[19]
    if state in "ZX":  # ended, and only waiting for its parent to notice
        return ""
    boot = PROC / "sys" / "kernel" / "random" / "boot_id"
    return f"{boot.read_text().strip() if boot.exists() else ''}:{ticks_since_boot}"
