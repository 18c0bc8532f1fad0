"""`python -m tests.network.own_network COMMAND …` runs a command in a network of its own, which has a loopback alone.

Ray's processes listen on every interface, whatever they are told: in here that is the loopback alone.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import sys
from pathlib import Path

_NEW_USERS, _NEW_NETWORK = 0x10000000, 0x40000000  # CLONE_NEWUSER, CLONE_NEWNET
_GET_FLAGS, _SET_FLAGS, _UP = 0x8913, 0x8914, 0x1  # SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP
_REFUSED = """error: a network namespace is needed, and cannot be made here: {}.
Ray listens on every interface without asking who connects, so that these tests run in a network of their own. Allow
user namespaces (sysctl user.max_user_namespaces, and kernel.apparmor_restrict_unprivileged_userns=0 on Ubuntu), run
this as root, or in a container give it --cap-add SYS_ADMIN --security-opt seccomp=unconfined.
"""


def main(command: list[str]) -> None:
    """Run a command in its own network, in place of this process."""
    try:
        leave_network()
    except OSError as error:
        sys.exit(_REFUSED.format(error.strerror or error))
    os.execvp(command[0], command)


def leave_network() -> None:
    """Move this process into a network of its own, whose loopback is up. Raises `OSError` where that is not allowed."""
    user, group = os.geteuid(), os.getegid()
    _unshare(_NEW_NETWORK if user == 0 else _NEW_NETWORK | _NEW_USERS)
    if user != 0:  # who may do anything with the new network, and stays the same for files
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        fcntl.ioctl(asked, _SET_FLAGS, struct.pack("16sH", b"lo", _flags(asked, "lo") | _UP))


def is_own_network() -> bool:
    """Whether the loopback is up, and no other interface is."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        return [name for _, name in socket.if_nameindex() if _flags(asked, name) & _UP] == ["lo"]


def _flags(asked: socket.socket, interface: str) -> int:
    flags: int = struct.unpack("16xH", fcntl.ioctl(asked, _GET_FLAGS, struct.pack("16sH", interface.encode(), 0)))[0]
    return flags


def _unshare(flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(flags) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


if __name__ == "__main__":
    main(sys.argv[1:])
