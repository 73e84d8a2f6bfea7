"""metah-search serve, run as a command: it starts, stops as told, and says what is wrong."""

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.runtime.cli.test_cli import search

from metah_runtime import Index

from .conftest import BITS, COUNT, World

PROGRAM = "from metah_runtime.cli.main import main; main()"


def command(world: World, *args: str | Path, index: Path | None = None) -> list[str]:
    where = [str(index or world.index), "--bundle", str(world.bundle.path), "--threads", "1"]
    return [sys.executable, "-c", PROGRAM, "serve", *where, *map(str, args)]


def fails(status: int, world: World, *args: str | Path, index: Path | None = None) -> str:
    """Run a command that must fail at once in this process; return its one line."""
    done = search("serve", index or world.index, "--bundle", world.bundle.path, *args)
    assert done.status == status, done.err
    assert done.out == ""
    (line,) = done.err.splitlines()
    return line.removeprefix("metah-search: error: ")


@contextmanager
def started(world: World, *args: str | Path) -> Iterator[tuple["subprocess.Popen[str]", int]]:
    """Start the command on a free port; yield the process and the port."""
    with subprocess.Popen(
        command(world, "--port", "0", "--json", "--decoders", "1", *args),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout
            facts = json.loads("".join(process.stdout.readline() for _ in range(5)))
            assert (facts["pid"], facts["codes"]) == (process.pid, COUNT)
            yield process, int(facts["url"].rpartition(":")[2])
        finally:
            process.kill()


def test_it_answers_and_ends_what_it_has_begun_when_told_to_stop(
    world: World, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text("a-token-in-a-file\n")
    layout = ("--images", world.images, "--layout", "domain/label", "--token-file", token)
    bearer = "Authorization: Bearer a-token-in-a-file"
    with (
        started(world, *layout) as (process, port),
        socket.create_connection(("127.0.0.1", port), timeout=60) as slow,
    ):
        data = world.files[0].read_bytes()
        head = f"POST /v1/search HTTP/1.1\r\nHost: x\r\n{bearer}\r\nContent-Type: image/png\r\n"
        slow.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data[:10])
        link = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        headers = dict([bearer.split(": ")], **{"Content-Type": "application/json"})
        link.request("POST", f"/v1/search?k={COUNT}", b'{"id": 0}', headers)
        found = {item["id"]: item for item in json.loads(link.getresponse().read())["neighbours"]}
        assert (found[0]["label"], found[0]["domain"]) == ("class 0", "sketch")
        # An idle connection does not hold up the end, and a request at work is still answered.
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        slow.sendall(data[10:])
        answer = b""
        while part := slow.recv(65536):
            answer += part
        out, err = process.communicate(timeout=60)
        link.close()
    assert answer.startswith(b"HTTP/1.1 200")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["bits"] == BITS
    assert process.returncode == 0
    assert out == ""
    lines = [json.loads(line) for line in err.splitlines()]
    assert [(line["route"], line["status"]) for line in lines] == [("/v1/search", 200)] * 2
    assert "a-token-in-a-file" not in err


def test_decoders_end_with_a_server_that_is_killed(world: World) -> None:
    with started(world) as (process, _):
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert children
        process.kill()
        process.wait(30)
    for child in map(int, children):
        for _ in range(200):
            try:
                state = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0]
            except FileNotFoundError:
                break
            if state == "Z":
                break
            time.sleep(0.05)
        else:
            os.kill(child, signal.SIGKILL)
            pytest.fail("a decoder outlived its server")


def test_an_unread_log_stops_neither_answers_nor_the_end(world: World) -> None:
    with started(world, "--drain", "1") as (process, port):
        link = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        for _ in range(1200):  # several times the lines that a pipe takes
            link.request("GET", "/healthz")
            assert link.getresponse().read() == b'{"status":"ok"}'
        link.close()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0


STUCK = """
import sys, time
from metah_runtime.serve import startup, thumbnails
thumbnails.open_below = lambda *_: (print("stuck", flush=True), time.sleep(1000))
"""


def test_a_stop_ends_what_never_ends(world: World) -> None:
    """As with a network share that no longer answers."""
    program = command(world, "--port", "0", "--drain", "0.5", "--images", world.images, "--json")
    program[2] = STUCK + "startup.warnings = lambda *_: []\n" + PROGRAM
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        facts = json.loads("".join(process.stdout.readline() for _ in range(5)))
        port = int(facts["url"].rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=60) as link:
            link.sendall(b"GET /v1/images/0/thumbnail HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert process.stdout.readline() == "stuck\n"
            start = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=60) == -signal.SIGALRM
            assert time.monotonic() - start < 20


def test_pictures_at_another_place_are_told_and_found(world: World, tmp_path: Path) -> None:
    shutil.copytree(world.images, tmp_path / "mnt")
    layout = ("--images", tmp_path / "mnt", "--layout", "domain/label")
    for base, warnings in (((), 1), (("--base", world.images), 0)):
        with started(world, *layout, *base) as (process, port):
            link = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            link.request("GET", "/v1/images/0/thumbnail")
            answer = link.getresponse()
            answer.read()
            assert answer.status == (404 if warnings else 200)
            link.close()
            process.send_signal(signal.SIGTERM)
            lines = [json.loads(line) for line in process.communicate(timeout=60)[1].splitlines()]
        told = [line["event"] for line in lines if line["level"] == "warning"]
        assert len(told) == warnings
        for text in told:
            assert f"none of the {COUNT} paths" in text
            assert text.endswith(f"fix: --base {world.images}")


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (["--host", "0.0.0.0"], "there is no token; fix: --token-file FILE"),
        (["--host", "::"], "there is no token"),
        (["--token", "short"], "8 to 512 visible ASCII characters"),
        (["--token", "x" * 9, "--token-file", "y"], "--token or --token-file, not both"),
        (["--token-file", "/none"], "--token-file /none"),
        (["--port", "99999"], "--port must be a whole number in 0..65535, got 99999"),
        (["--max-body", "5"], "--max-body must be"),
        (["--images", "/none"], "--images /none: no such folder"),
        (["--layout", "label"], "fix: --images"),
        (["--base", "/x"], "fix: --images FOLDER --base /PATH"),
        (["--images", "/", "--base", "x"], "--base must be the absolute path"),
        (["--decode-timeout", "0"], "--decode-timeout must be in 0.01..3600 seconds, got 0.0"),
        (["--labels", "/none"], "--labels /none"),
        (["--log-level", "loud"], "--log-level must be one of"),
        (["--device", "tpu"], "device must be one of"),
    ],
)
def test_what_cannot_be_started_says_why(world: World, args: list[str], error: str) -> None:
    assert error in fails(2, world, *args)


def test_a_taken_port_and_a_foreign_index_are_refused(world: World, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert fails(2, world, "--port", str(port)) == (
            f"cannot listen on 127.0.0.1 port {port}: Address already in use; "
            "fix: --port with another"
        )
    Index.create(tmp_path / "foreign", bits=BITS, fingerprint="f" * 64)
    line = fails(1, world, index=tmp_path / "foreign")
    assert "their codes cannot be compared" in line
