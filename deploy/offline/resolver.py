"""A name server for a network namespace without routes: notes who asked for which name, and says that there is none.

The hook sees Python code look names up; this sees every program do it, C libraries included. It listens where resolv.conf says,
on addresses that it gives to the loopback device. Knows nothing of what a look-up means. Linux only.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import ipaddress
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PORT, LARGEST_BYTES, HEADER_BYTES = 53, 4096, 12
READY_SECONDS = 5.0
NO_SUCH_NAME = 0x8183  # an answer, recursion as asked, NXDOMAIN
SET_ADDRESS, INTERFACE_NUMBER = 0x8916, 0x8933  # SIOCSIFADDR, SIOCGIFINDEX


class Question(NamedTuple):
    """`program` is "" where it had ended, or its process is not ours to look at."""

    name: str
    program: str


def servers(resolv_conf: str) -> list[str]:
    """The name servers that the C library asks; 127.0.0.1 where none is named, as it does. One on a link (`fe80::1%eth0`) is left
    out: there is no such link here."""
    words = [line.split() for line in resolv_conf.splitlines()]
    named = [word[1] for word in words if len(word) > 1 and word[0] == "nameserver"]
    found = []
    for each in named:
        with contextlib.suppress(ValueError):
            address = ipaddress.ip_address(each)
            found += [] if address.is_link_local else [str(address)]
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
        with contextlib.suppress(OSError):  # also where this kernel has no IPv6
            links.append(_link(number, address, port))
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


def _link(number: int, address: str, port: int) -> socket.socket:
    """A socket on an address that loopback has, or gets. Raises OSError."""
    parsed = ipaddress.ip_address(address)
    link = socket.socket(socket.AF_INET if parsed.version == 4 else socket.AF_INET6, socket.SOCK_DGRAM)
    try:
        if not parsed.is_loopback:
            fcntl.ioctl(link, SET_ADDRESS, _wanted(link, number, parsed))
        _bind(link, address, port)
    except OSError:
        link.close()
        raise
    return link


def _bind(link: socket.socket, address: str, port: int) -> None:
    """The kernel makes an IPv6 address ready a moment after it is given."""
    end = time.monotonic() + READY_SECONDS
    while True:
        try:
            return link.bind((address, port))
        except OSError as problem:
            if problem.errno != errno.EADDRNOTAVAIL or time.monotonic() > end:
                raise
            time.sleep(0.01)


def _wanted(link: socket.socket, number: int, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bytes:
    """As `ip address add ADDRESS dev lo`: an `ifreq`, under a name of its own beside 127.0.0.1, or an `in6_ifreq`."""
    if address.version == 4:
        return struct.pack("16sHH4s8x", f"lo:{number}".encode(), socket.AF_INET, 0, address.packed)
    (device,) = struct.unpack_from("i", fcntl.ioctl(link, INTERFACE_NUMBER, struct.pack("16si12x", b"lo", 0)), 16)
    return struct.pack("16sIi", address.packed, 128, device)


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
    lines = []
    for table in ("/proc/net/udp", "/proc/net/udp6"):
        with contextlib.suppress(FileNotFoundError):  # no IPv6 in this kernel
            lines += [line.split() for line in Path(table).read_text(encoding="ascii").splitlines()[1:]]
    sockets = {f"socket:[{line[9]}]" for line in lines if int(line[1].rpartition(":")[2], 16) == port}
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with contextlib.suppress(OSError):
                if any(os.readlink(each) in sockets for each in (process / "fd").iterdir()):
                    return (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()[:200]
    return ""
