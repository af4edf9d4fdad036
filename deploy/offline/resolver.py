"""A name server for a network namespace without routes: notes who asked for which name, and says that there is none.

The hook sees Python code look names up; this sees every program do it, C libraries included. It listens where resolv.conf says,
on addresses that it gives to the loopback device. Knows nothing of what a look-up means. Linux only.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import os
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PORT, LARGEST_BYTES, HEADER_BYTES = 53, 4096, 12
NO_SUCH_NAME = 0x8183  # an answer, recursion as asked, NXDOMAIN
SET_ADDRESS = 0x8916  # SIOCSIFADDR


class Question(NamedTuple):
    """`program` is "" where it had ended, or its process is not ours to look at."""

    name: str
    program: str


def servers(resolv_conf: str) -> list[str]:
    """The IPv4 name servers that the C library asks; 127.0.0.1 where none is named, as it does."""
    words = [line.split() for line in resolv_conf.splitlines()]
    named = [word[1] for word in words if len(word) > 1 and word[0] == "nameserver"]
    found = []
    for each in named:
        with contextlib.suppress(ValueError):
            found.append(str(ipaddress.IPv4Address(each)))
    return found or ([] if named else ["127.0.0.1"])


def question(packet: bytes) -> tuple[str, int]:
    """(the name asked for, where its question ends). Raises ValueError for what is no question."""
    labels, at = [], HEADER_BYTES
    while at < len(packet) and packet[at]:
        end = at + 1 + packet[at]
        if packet[at] > 63 or end >= len(packet):
            raise ValueError("no name")
        labels.append(packet[at + 1 : end].decode("ascii", errors="replace"))
        at = end
    if at + 5 > len(packet):
        raise ValueError("cut off")
    return ".".join(labels).lower(), at + 5


def answer(packet: bytes, end: int) -> bytes:
    return packet[:2] + struct.pack("!5H", NO_SUCH_NAME, 1, 0, 0, 0) + packet[HEADER_BYTES:end]


@contextlib.contextmanager
def listening(addresses: list[str], port: int = PORT) -> Iterator[list[Question]]:
    """The questions as they come in. An address that cannot be had stays unheard: then the packets without a route tell."""
    asked: list[Question] = []
    links = []
    for number, address in enumerate(addresses):
        link = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            if not ipaddress.ip_address(address).is_loopback:
                _give(link, number, address)
            link.bind((address, port))
            links.append(link)
        except OSError:
            link.close()
    threads = [threading.Thread(target=_serve, args=(link, asked), daemon=True) for link in links]
    for thread in threads:
        thread.start()
    try:
        yield asked
    finally:
        for link, thread in zip(links, threads, strict=True):
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)  # wakes the thread; says that it is not connected
            thread.join(5)
            link.close()


def _give(link: socket.socket, number: int, address: str) -> None:
    """As `ip address add ADDRESS dev lo`, under a name of its own beside 127.0.0.1."""
    wanted = struct.pack("16sHH4s8x", f"lo:{number}".encode(), socket.AF_INET, 0, socket.inet_aton(address))
    fcntl.ioctl(link, SET_ADDRESS, wanted)


def _serve(link: socket.socket, asked: list[Question]) -> None:
    while True:
        try:
            packet, sender = link.recvfrom(LARGEST_BYTES)
        except OSError:
            return
        if not packet:
            return
        try:
            name, end = question(packet)
        except ValueError:
            continue
        asked.append(Question(name, _program(sender[1])))
        with contextlib.suppress(OSError):
            link.sendto(answer(packet, end), sender)


def _program(port: int) -> str:
    """The command line of who sent from this port of this machine; it waits for its answer, so it is still there."""
    lines = [line.split() for line in Path("/proc/net/udp").read_text(encoding="ascii").splitlines()[1:]]
    sockets = {f"socket:[{line[9]}]" for line in lines if int(line[1].rpartition(":")[2], 16) == port}
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with contextlib.suppress(OSError):
                if any(os.readlink(each) in sockets for each in (process / "fd").iterdir()):
                    return (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()[:200]
    return ""
