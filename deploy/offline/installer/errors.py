"""The one error of the installer, and what to do about the system's own."""

from __future__ import annotations

import errno
import subprocess
import tarfile

# What the disk and the system say, and what helps.
STEPS = {
    errno.ENOSPC: "The disk is full: make room there, or choose another place with --to. What was there before is unchanged.",
    errno.EDQUOT: "The quota is used up: make room there, or choose another place with --to.",
    errno.EFBIG: "The file is larger than its file system, or a limit (ulimit -f), allows: choose another place with --to.",
    errno.EROFS: "It is mounted read-only: choose another place with --to, or mount it for writing.",
    errno.EACCES: "Run it as a user who may write and run programs there, or choose another --to.",
    errno.EPERM: "The file system may have no links and modes (FAT, exFAT), or the user no right: choose another --to.",
    errno.EIO: "The disk cannot be read or written: look at its log (dmesg), and copy the bundle to another one.",
    errno.EBUSY: "Something holds it: is a disk mounted there? Choose a folder below it with --to.",
    errno.EEXIST: "The file system may not tell upper from lower case: choose another place with --to.",
}


class InstallError(Exception):
    """Why it cannot go on; `next_step` says what to do."""

    def __init__(self, message: str, next_step: str = "") -> None:
        super().__init__(message)
        self.next_step = next_step


def explained(problem: BaseException) -> tuple[str, str]:
    """(message, next step) of whatever ended the installer."""
    if isinstance(problem, InstallError):
        return str(problem), problem.next_step
    if isinstance(problem, KeyboardInterrupt):
        return "interrupted", "Run it again: an installation is there whole or not at all."
    if isinstance(problem, tarfile.TarError):
        return f"the parts are no archive: {problem}", "Check the disk that they lie on, and copy the bundle again."
    if isinstance(problem, OSError) and problem.errno:
        place = f"{problem.filename}: " if problem.filename else ""
        step = STEPS.get(problem.errno, "Correct that, and run it again.")
        return f"{place}{problem.strerror}", step
    if isinstance(problem, subprocess.SubprocessError):
        return f"a program did not end well: {problem}", "Run it again; on a slow disk it may take longer."
    return str(problem), "Correct that, and run it again."
