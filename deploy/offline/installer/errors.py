"""The one error of the installer."""

from __future__ import annotations


class InstallError(Exception):
    """Why it cannot go on; `next_step` says what to do."""

    def __init__(self, message: str, next_step: str = "") -> None:
        super().__init__(message)
        self.next_step = next_step
