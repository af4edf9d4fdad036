"""Space and inodes of file systems, from `df` and /proc/mounts. Knows no transport.

Network file systems are listed but not measured: `df` on a dead one hangs in a state that nothing can end. Mounts of the same
device (bind mounts) count once, under the path that was mounted first. Paths may hold spaces and line feeds (octal in
/proc/mounts).
"""

from __future__ import annotations

import re
from typing import NamedTuple

from collectors.readings import Fault, Filesystem, Filesystems
from collectors.texts import count, cut, lines, ratio

# What holds data on disks, against the kernel's own file systems and network ones. fuseblk is ntfs and exfat.
LOCAL_TYPES = (
    "ext2",
    "ext3",
    "ext4",
    "xfs",
    "btrfs",
    "zfs",
    "f2fs",
    "bcachefs",
    "jfs",
    "reiserfs",
    "vfat",
    "exfat",
    "ntfs3",
    "fuseblk",
)
NETWORK_TYPES = (
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "lustre",
    "ceph",
    "beegfs",
    "glusterfs",
    "fuse.sshfs",
    "fuse.glusterfs",
    "9p",
    "afs",
)
ROOT_TYPES = ("overlay", "tmpfs", "ramfs", "rootfs", "squashfs", "virtiofs")  # measured only as the root of the machine

# The kernel's \040 in a path is what `printf %b` takes for a space. `df` is asked for those mounts alone, so it touches no other.
COMMAND = f"""set --
while read -r device mount type rest; do
  case "$type" in
    {"|".join(LOCAL_TYPES)}) ;;
    {"|".join(ROOT_TYPES)}) [ "$mount" = / ] || continue ;;
    *) continue ;;
  esac
  case "$mount" in /var/lib/kubelet/*|/var/lib/docker/*|/snap/*) continue ;; esac
  set -- "$@" "$(printf '%b' "$mount")"
done </proc/mounts
printf '==> mounts <==\\n'; cat /proc/mounts
printf '==> space <==\\n'; [ $# = 0 ] || df -P -k -- "$@" 2>&1
printf '==> inodes <==\\n'; [ $# = 0 ] || df -P -i -- "$@" 2>/dev/null
"""

_HEADER = re.compile(r"^==> (mounts|space|inodes) <==$", re.MULTILINE)
# device, size, used, available, use, mount: parsed from both ends, for the device and the mount may hold spaces.
_ROW = re.compile(r"(.+?) +([0-9]+|-) +([0-9]+|-) +(-?[0-9]+|-) +([0-9]+%|-) +(/.*)")


def parse(text: str) -> Filesystems:
    """The reading in what COMMAND printed. Never raises."""
    parts = _HEADER.split(text)
    sections = dict(zip(parts[1::2], parts[2::2], strict=False))
    mounts = parse_mounts(sections.get("mounts", ""))
    if "space" not in sections or not mounts:
        return Filesystems(None, (Fault("mounts_missing", cut(text), "Is it Linux, and may this user read /proc/mounts?"),))
    mounted = {mount.path: mount for mount in mounts}
    space, inodes = _rows(sections["space"]), _rows(sections.get("inodes", ""))
    if not space and sections["space"].strip():
        return Filesystems(None, (_complaint(sections["space"]),))
    found = _once_each_device([_filesystem(row, inodes.get(path), mounted.get(path)) for path, row in space.items()])
    network = [
        Filesystem(cut(mount.path), cut(mount.device), mount.type, None, None, None, None, read_only=mount.read_only)
        for mount in mounts
        if mount.type in NETWORK_TYPES
    ]
    faults = [_complaint(line) for line in lines(sections["space"]) if line.startswith("df: ")]
    faults += [_unmeasured(filesystem) for filesystem in network]
    return Filesystems((*found, *network), tuple(faults))


class Mount(NamedTuple):
    """A line of /proc/mounts. `read_only` is None where the line says nothing of it."""

    device: str
    path: str
    type: str
    read_only: bool | None


def parse_mounts(text: str) -> list[Mount]:
    """Each line of /proc/mounts; the last mount on a path is the one that is seen."""
    found: dict[str, Mount] = {}
    for line in lines(text):
        words = line.split(" ")
        if len(words) >= 3:
            device, path, kind = (_unescape(word) for word in words[:3])
            options = words[3].split(",") if len(words) > 3 else []
            read_only = True if "ro" in options else False if "rw" in options else None
            found[path] = Mount(device, path, cut(kind, 40), read_only)
    return list(found.values())


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _rows(text: str) -> dict[str, re.Match[str]]:
    matches = (_ROW.fullmatch(line) for line in lines(text)[:10_000])
    return {match[6]: match for match in matches if match}


def _filesystem(space: re.Match[str], inodes: re.Match[str] | None, mount: Mount | None) -> Filesystem:
    total, used, available = (_bytes(space[index]) for index in (2, 3, 4))
    writable = None if used is None or available is None else used + max(0, available)  # negative: into the reserve of root
    files_total = count(inodes[2]) if inodes else None
    files_used = count(inodes[3]) if inodes and files_total else None  # btrfs and vfat say 0 of 0: they have no such limit
    return Filesystem(
        mount=cut(space[6]),
        device=cut(space[1]),
        type=mount.type if mount else None,
        total_bytes=total,
        used_bytes=used,
        available_bytes=None if available is None else max(0, available),
        used_ratio=ratio(used, writable),
        inodes_total=files_total or None,
        inodes_used=files_used,
        inodes_used_ratio=ratio(files_used, files_total),
        read_only=mount.read_only if mount else None,
    )


def _bytes(kilobytes: str) -> int | None:
    return None if kilobytes == "-" else int(kilobytes[:20]) * 1024


def _once_each_device(found: list[Filesystem]) -> list[Filesystem]:
    first: dict[str, Filesystem] = {}
    for filesystem in found:
        first.setdefault(filesystem.device, filesystem)
    return sorted(first.values(), key=lambda item: item.mount)


def _complaint(line: str) -> Fault:
    return Fault("df_failed", cut(line), "Run `df` by hand on the machine; a file system that cannot be read is often failing.")


def _unmeasured(filesystem: Filesystem) -> Fault:
    return Fault(
        "network_filesystem",
        f"{filesystem.mount} ({filesystem.type}) is not measured",
        "Watch its space on the server: asking for it here could hang.",
        subject=filesystem.mount,
        severity="note",
    )
