"""The walls around the tests stand: a test that believes in them must not find them missing."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.conftest import in_shard

ROOT = Path(__file__).parents[1]
REMOTE = "192.0.2.1"  # reserved for documentation (RFC 5737): nobody answers there
UDP = {"type": socket.SOCK_DGRAM}
TRIES = {
    "connect": ({}, lambda client: client.connect((REMOTE, 80))),
    "connect_ex": ({}, lambda client: client.connect_ex((REMOTE, 80))),
    "connect by name": ({}, lambda client: client.connect(("example.org", 80))),
    "IPv6": ({"family": socket.AF_INET6}, lambda client: client.connect(("2001:db8::1", 80, 0, 0))),
    "sendto": (UDP, lambda client: client.sendto(b"x", (REMOTE, 53))),
    "sendto with flags": (UDP, lambda client: client.sendto(b"x", 0, (REMOTE, 53))),
    "sendmsg": (UDP, lambda client: client.sendmsg([b"x"], [], 0, (REMOTE, 53))),
    "getaddrinfo": ({}, lambda _: socket.getaddrinfo("example.org", 80)),
    "gethostbyname": ({}, lambda _: socket.gethostbyname("example.org")),
}


@pytest.mark.parametrize(("kind", "attempt"), TRIES.values(), ids=TRIES.keys())
def test_network_is_blocked(kind, attempt):
    # NetworkBlocked by its base: a worker of pytest-xdist, itself a child, knows the class from another module
    with socket.socket(**kind) as client, pytest.raises(RuntimeError, match="tests may only"):
        attempt(client)


def assert_connected(client, server):
    client.sendall(b"axial")
    with server.accept()[0] as accepted:
        assert accepted.recv(5) == b"axial"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_loopback_is_open(host):
    with socket.create_server(("127.0.0.1", 0)) as server:
        with socket.create_connection((host, server.getsockname()[1])) as client:
            assert_connected(client, server)


def test_unix_sockets_are_open(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a Unix socket's path may have 107 characters, and tmp_path may be longer
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind("local")
        server.listen()
        client.connect("local")
        assert_connected(client, server)


ATTEMPT = f"import socket; socket.socket().connect(({REMOTE!r}, 80))"


def test_network_is_blocked_in_children_of_children():
    code = f"import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-c', {ATTEMPT!r}]).returncode)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and "NetworkBlocked" in done.stderr


def test_children_import_this_checkout(tmp_path):
    code = "import modeling_axial; print(modeling_axial.__file__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()).parents[1] == ROOT


def test_hugging_face_libraries_are_offline_and_write_to_a_cache_of_the_tests():
    from huggingface_hub import constants
    from transformers.utils.hub import HF_MODULES_CACHE

    assert constants.HF_HUB_OFFLINE
    assert constants.HF_HOME.startswith(os.environ["HF_HOME"]) and "axial-tests-" in constants.HF_HOME
    assert HF_MODULES_CACHE.startswith(constants.HF_HOME)


def test_run_python_is_a_stranger(run_python, tmp_path):
    code = """
import os, sys, huggingface_hub.constants
for name in ("configuration", "modeling_axial.attention"):
    try:
        __import__(name)
    except ModuleNotFoundError:
        print("no", name)
print(os.listdir(), sys.argv[1:], os.environ["MINE"], huggingface_hub.constants.HF_HUB_OFFLINE)
"""
    first, second = (run_python(code, "a", 1, env={"MINE": "x"}).stdout.splitlines() for _ in range(2))
    assert first == second == ["no configuration", "no modeling_axial.attention", "[] ['a', '1'] x True"]
    modules = "import os; print(os.environ['HF_MODULES_CACHE'])"
    assert run_python(modules).stdout != run_python(modules).stdout
    script = tmp_path / "script.py"
    script.write_text("import os; print(os.getcwd())")
    assert run_python(script, cwd=tmp_path).stdout.strip() == str(tmp_path.resolve())


def test_run_python_has_no_network(run_python):
    done = run_python(ATTEMPT, check=False)
    assert done.returncode == 1 and "NetworkBlocked" in done.stderr


def test_run_python_refuses_to_run_where_the_package_is(run_python):
    done = run_python("print('ran')", env={"BLOCKED_PACKAGES": "", "PYTHONPATH": os.environ["PYTHONPATH"]}, check=False)
    assert done.returncode == 1 and "modeling_axial can be imported here" in done.stderr and not done.stdout


def test_run_python_fails_the_test_with_the_output(run_python):
    with pytest.raises(pytest.fail.Exception, match="(?s)exit status 3.*seen.*ValueError"):
        run_python("import sys, traceback; print('seen'); traceback.print_exception(ValueError()); sys.exit(3)")


def test_shards_are_all_tests_each_once():
    items = [SimpleNamespace(path=Path(f"tests/test_{name}.py"), name=name) for name in "bdacbacfe"]
    shards = [in_shard(items, f"{number}/4") for number in (1, 2, 3, 4)]
    assert [[item.name for item in shard] for shard in shards] == [["a", "a", "e"], ["b", "b", "f"], ["c", "c"], ["d"]]
    assert in_shard(items, "1/1") == items


@pytest.mark.parametrize("shard", ["0/4", "5/4", "1/0", "1", "", "a/b", "-1/4", "1/4/4"])
def test_what_is_no_shard_is_refused(shard):
    with pytest.raises(pytest.UsageError, match="TEST_SHARD is a number and how many there are"):
        in_shard([], shard)
