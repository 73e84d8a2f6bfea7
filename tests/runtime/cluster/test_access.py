"""Without Ray's token nothing starts; without Ray the rest works."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from metah_runtime.cli import console
from metah_runtime.cli.main import cli
from metah_runtime.cluster import access
from metah_runtime.errors import ClusterError, MissingExtra


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_ADDRESS", "RAY_BACKEND_LOG_LEVEL"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.mark.parametrize("mode", ["disabled", "", "k8s"])
def test_the_mode_must_be_token(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    with pytest.raises(ClusterError, match=f"RAY_AUTH_MODE is '{mode}', METAH works with token"):
        access.connect("127.0.0.1:1")


def test_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"pip install 'metah\[ray\]'"):
        access.connect("127.0.0.1:1")


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("import sys; sys.exit(41)", "lets callers in without a token"),
        ("raise OSError('no route')", "cannot tell whether 10.0.0.1:1 asks .* no route"),
    ],
)
def test_an_open_door(monkeypatch: pytest.MonkeyPatch, program: str, message: str) -> None:
    monkeypatch.setattr(access, "_PROBE", program)
    with pytest.raises(ClusterError, match=message):
        access.require_token("10.0.0.1:1")


def test_a_shut_door_and_a_bare_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    program = (
        "import os, sys; names = {k: v for k, v in os.environ.items() if k[:4] == 'RAY_'}; "
        "wanted = {'RAY_AUTH_MODE': 'disabled', 'RAY_USAGE_STATS_ENABLED': '0'}; "
        "sys.exit(40 if names == wanted else 41)"
    )
    monkeypatch.setattr(access, "_PROBE", program)
    access.require_token("10.0.0.1:1")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("ray://10.0.0.1:10001", "give HOST:PORT of the head, without a protocol"),
        ("head", "must be HOST:PORT of the head, got 'head'"),
        (":6379", "must be HOST:PORT"),
    ],
)
def test_addresses(address: str, message: str) -> None:
    with pytest.raises(ClusterError, match=message):
        access._find(address)


@pytest.mark.parametrize(
    ("args", "message", "status"),
    [
        (["start", "nowhere"], "nowhere: it has no file MANIFEST", 1),
        (["query"], "nothing to search for", 2),
        (["query", "--code", "00", "--hedge", "2"], "hedge must be at most half the deadline", 2),
        (["query", "--code", "00", "-k", "1", "--radius", "1"], "give -k or --radius, not both", 2),
        (["encode", "--bundle", "b", "--out", "o"], "nothing to encode", 2),
        (["encode", "x", "--bundle", "b", "--out", "o", "--part", "0"], "part must be", 2),
        (["encode", "x", "--out", "o"], "Missing option '--bundle'", 2),
    ],
)
def test_a_mistake_is_one_line(
    args: list[str],
    message: str,
    status: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(access, "connect", lambda _: "10.0.0.1:1")
    with pytest.raises(SystemExit) as end:
        console.run(cli, "metah-search", ["cluster", *args])
    err = capsys.readouterr().err
    assert end.value.code == status, err
    assert message in err
    assert err.count("\n") == 1


def test_one_machine_needs_no_ray() -> None:
    code = (
        "import sys; sys.modules['ray'] = None\n"
        "import metah_runtime.search, metah_runtime.index, metah_runtime.model.encoder\n"
        "import metah_runtime.cli.main, metah_runtime.cli.add, metah_runtime.cli.query\n"
        "import metah_runtime.cli.cluster, metah_runtime.cluster.searcher\n"
        "import metah_runtime.cluster.actors, metah_runtime.cluster.encoding\n"
        "from metah_runtime.cluster.access import connect\n"
        "assert not [name for name in sys.modules if name.startswith(('ray.', 'pandas'))]\n"
        "try: connect()\n"
        "except Exception as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "ray is not installed: it belongs to the extra 'ray'" in done.stdout


@pytest.mark.parametrize(("given", "due"), [(None, "0"), ("1", "1")])
def test_usage_statistics_are_off_before_ray_is_imported(
    given: str | None, due: str, tmp_path: Path
) -> None:
    (tmp_path / "ray.py").write_text(
        "import os\nprint('statistics', os.environ.get('RAY_USAGE_STATS_ENABLED'))\n"
        "__version__ = '0'\n"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment |= {"PYTHONPATH": str(tmp_path)} | (
        {"RAY_USAGE_STATS_ENABLED": given} if given else {}
    )
    program = "from metah_runtime.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "cluster", "status"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == f"statistics {due}\n"
    assert "knows no token" in done.stderr
