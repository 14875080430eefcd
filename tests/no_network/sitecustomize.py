"""Shut off from the network: Python runs this file at the start of every process that the tests start.

`tests/conftest.py` imports it into the test process itself and puts this folder on `PYTHONPATH`, so that children, and
the children of children (torchrun, spawned workers), are covered too. What stays open is this machine: the loopback
addresses and Unix sockets. A try to reach anything else raises `NetworkBlocked`, which is deliberately no `OSError`:
libraries take that for a network that is down, and go on in silence.

A process in whose environment `BLOCKED_PACKAGES` names packages, separated by commas, cannot import them, in whatever
way they may be installed.
"""

import ipaddress
import os
import socket
import sys


class NetworkBlocked(RuntimeError):
    """Code under test tried to leave this machine."""


class PackageBlocker:
    """The first finder on `sys.meta_path`: has the last word on packages that must not be there."""

    def __init__(self, names):
        self.names = names

    def find_spec(self, fullname, path=None, target=None):
        if fullname.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {fullname!r}: blocked for this test", name=fullname)
        return None


def is_local_host(host):
    """Whether `host`, a name or an address, is this machine seen from itself."""
    if host in (None, "", b"", "localhost", b"localhost"):
        return True
    try:
        return ipaddress.ip_address(host.decode() if isinstance(host, bytes) else host).is_loopback
    except ValueError:
        return False


def refuse_remote(family, address):
    if family in (socket.AF_INET, socket.AF_INET6) and not is_local_host(address[0]):
        raise NetworkBlocked(f"tests may only connect to this machine, got {address!r}")


def guarded(method, address_of):
    """`method` of `socket.socket`, refusing what `address_of(arguments)` says lies elsewhere; None is no address."""

    def call(self, *arguments):
        address = address_of(arguments)
        if address is not None:
            refuse_remote(self.family, address)
        return method(self, *arguments)

    return call


def guarded_lookup(function):
    """`function`, which finds the addresses of a host, without questions to a name server."""

    def lookup(host, *arguments, **keywords):
        if host != socket.gethostname() and not is_local_host(host):
            try:
                ipaddress.ip_address(host)  # an address needs no name server; to connect to it is refused above
            except ValueError:
                raise NetworkBlocked(f"tests may only look up this machine, got {host!r}") from None
        return function(host, *arguments, **keywords)

    return lookup


def block_network():
    """Once in a process: guard every way in which Python's sockets take an address."""
    if getattr(socket, "guarded", False):
        return
    socket.guarded = True
    socket.socket.connect = guarded(socket.socket.connect, lambda arguments: arguments[0])
    socket.socket.connect_ex = guarded(socket.socket.connect_ex, lambda arguments: arguments[0])
    socket.socket.sendto = guarded(socket.socket.sendto, lambda arguments: arguments[-1])
    socket.socket.sendmsg = guarded(
        socket.socket.sendmsg, lambda arguments: arguments[3] if len(arguments) > 3 else None
    )
    for name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex"):
        setattr(socket, name, guarded_lookup(getattr(socket, name)))


block_network()
if os.environ.get("BLOCKED_PACKAGES"):
    sys.meta_path.insert(0, PackageBlocker(frozenset(os.environ["BLOCKED_PACKAGES"].split(","))))
