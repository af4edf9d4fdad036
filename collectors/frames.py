"""The text of a long-lived loop in a remote shell, and the frames it answers with. Pure; knows no transport and no reading.

The loop is one POSIX script, read by `sh` from its input; afterwards each input line `NUMBER WORD` runs the script named WORD
once and frames what it prints by lines that begin with a nonce, so that no banner, profile or tool can be taken for a frame.

The end: when its input closes, or when it is older than its lease (a peer that vanished closes nothing), the loop kills its own
process group, with whatever hangs in it. It does so only as the leader of that group, which it is under OpenSSH.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

SHELL = "exec /bin/sh"  # means the same to sh, bash, fish, csh and tcsh, so that nothing needs quoting for the login shell
_WORD = re.compile(r"[a-z_]{1,40}")
# Non-interactive logins often lack the directories of df, nvidia-smi and docker.
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/snap/bin"


@dataclass(frozen=True, slots=True)
class Frame:
    """What the script printed for request `number`, and its exit status as in `$?`."""

    number: int
    body: str
    exit_status: int


def loop_script(scripts: Mapping[str, str], nonce: str, lease_seconds: int, *, quiet: bool = True) -> str:
    """The script to send. `quiet` drops what the scripts say on stderr."""
    if not all(_WORD.fullmatch(word) for word in scripts):
        raise ValueError(f"words of scripts are small letters and underscores: {sorted(scripts)}")
    cases = "\n".join(f"{word}) ( eval {shlex.quote(script)} ) ;;" for word, script in scripts.items())
    # 1) A reader passes lines on and, at the end of its input, kills the group. 2) A sleeper ends it at the end of the lease.
    # 3) The worker runs the scripts, with no input, so that none can eat a request.
    return f"""LC_ALL=C; PATH="$PATH:{_PATH}"; export LC_ALL PATH
{"exec 2>/dev/null" if quiet else ""}
read -r _ _ _ _ group _ </proc/$$/stat
[ "$group" = "$$" ] && leader=yes || leader=
{{ while read -r line; do printf '%s\\n' "$line"; done; [ -z "$leader" ] || kill -9 0; }} | {{
[ -z "$leader" ] || {{ sleep {int(lease_seconds)}; kill -9 0; }} </dev/null >/dev/null 2>&1 &
printf '\\n{nonce} ready\\n'
while read -r number word; do
printf '\\n{nonce} begin %s\\n' "$number"
case "$word" in
{cases}
esac </dev/null
printf '\\n{nonce} end %s %s\\n' "$number" "$?"
done
}}
"""


class Frames:
    """Cuts a stream of bytes into frames. What stands outside of them (banners, profiles) is noise."""

    def __init__(self, nonce: str) -> None:
        self._ready = re.compile(rf"\n{nonce} ready\n".encode())
        self._begin = re.compile(rf"\n{nonce} begin ([0-9]{{1,18}})\n".encode())
        self._end = re.compile(rf"\n{nonce} end ([0-9]{{1,18}}) ([0-9]{{1,5}})\n".encode())
        self._longest = len(nonce) + 40
        self._buffer = bytearray(b"\n")
        self._scanned = 0
        self.ready = False
        self.noise = ""

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that are complete now. Never raises."""
        self._buffer += data
        if not self.ready:
            match = self._ready.search(self._buffer)
            self.noise = self._buffer[: match.start() if match else 2000].decode("utf-8", "replace").strip()[:1000]
            if match is None:
                return []
            self.ready = True
            del self._buffer[: match.end()]
        found: list[Frame] = []
        while match := self._end.search(self._buffer, max(0, self._scanned - self._longest)):
            found += self._cut(match)
        self._scanned = len(self._buffer)
        return found

    def _cut(self, end: re.Match[bytes]) -> list[Frame]:
        begins = [begin for begin in self._begin.finditer(self._buffer, 0, end.start() + 1) if begin[1] == end[1]]
        body = bytes(self._buffer[begins[0].end() : end.start()]) if begins else b""
        number, status = int(end[1]), int(end[2])
        del self._buffer[: end.end() - 1]  # its last line feed may be the first of the next marker
        self._scanned = 0
        return [Frame(number, body.decode("utf-8", "replace"), status)] if begins else []

    @property
    def pending_bytes(self) -> int:
        """How much has come that is in no complete frame."""
        return len(self._buffer)
