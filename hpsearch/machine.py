"""What there is of this machine: cores and memory that this process may use, and file systems."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Sequence

_CGROUP = Path("/sys/fs/cgroup")
_NETWORK_FILE_SYSTEMS = frozenset(
    ("9p", "afs", "beegfs", "blobfuse", "ceph", "cephfs", "cifs", "coda", "davfs", "davfs2", "gcsfuse", "glusterfs",
     "goofys", "gpfs", "juicefs", "lustre", "mfs", "ncpfs", "nfs", "nfs4", "orangefs", "pvfs2", "rclone", "s3fs",
     "smb2", "smb3", "smbfs", "sshfs", "wekafs"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Mount:
    """A file system and where it is mounted."""

    point: Path
    kind: str
    """As the system names it, such as `ext4` or `nfs4`."""

    @property
    def is_network(self) -> bool:
        """Whether other machines may have it mounted too."""
        return self.kind.removeprefix("fuse.") in _NETWORK_FILE_SYSTEMS


def mounts() -> list[Mount]:
    """Return what is mounted, in the order of the system's table."""
    return [Mount(Path(each.mountpoint), each.fstype) for each in psutil.disk_partitions(all=True)]


def mount_of(folder: Path, table: Sequence[Mount]) -> Mount | None:
    """Return the file system a folder lies on, of several mounted at one place the last."""
    folder = folder.resolve()
    holding = [mount for mount in table if folder.is_relative_to(mount.point)]
    deepest = max((len(mount.point.parts) for mount in holding), default=0)
    return next((mount for mount in reversed(holding) if len(mount.point.parts) == deepest), None)


def existing_parent(folder: Path) -> Path:
    """Return the folder, or the nearest one above it that is there."""
    folder = folder.absolute()
    return next(each for each in (folder, *folder.parents) if each.is_dir())


def usable_cores(cgroup: Path = _CGROUP) -> float:
    """Return how many cores this process may keep busy: of its affinity, within its container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _numbers(cgroup / "cpu.max")  # version 2: quota and period in microseconds, or `max` and the period
    if len(quota) != 2:
        quota = [*_numbers(cgroup / "cpu/cpu.cfs_quota_us"), *_numbers(cgroup / "cpu/cpu.cfs_period_us")]
    if len(quota) == 2 and quota[0] > 0 and quota[1] > 0:  # version 1 has -1 for no quota
        return min(cores, quota[0] / quota[1])
    return cores


def usable_memory(cgroup: Path = _CGROUP) -> tuple[int, int]:
    """Return the bytes of memory that are free for this process, and of how many, within its container's limit."""
    machine = psutil.virtual_memory()
    free, total = int(machine.available), int(machine.total)
    for limit_file, used_file in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        limit, used = _numbers(cgroup / limit_file), _numbers(cgroup / used_file)
        if len(limit) == len(used) == 1 and limit[0] < total:  # version 1 has a huge number for no limit
            return min(free, max(0, limit[0] - used[0])), limit[0]
    return free, total


def _numbers(path: Path) -> list[int]:
    """Return the whole numbers a file of the kernel holds; none where there is no such file."""
    try:
        words = path.read_text(encoding="ascii").split()
    except OSError:
        return []
    return [int(word) for word in words if word.lstrip("-").isdigit()]
