"""Two Ray nodes in two network namespaces, joined by a link that can be cut.

Meant to run behind ``ALONE``: nothing listens outside, and all of it ends with the process. The
second node has its own view of the file system, so that it can be given an old copy.
"""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

ALONE = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
HEAD, OTHER = "10.77.0.1", "10.77.0.2"
PORT = 6379
ADDRESS = f"{HEAD}:{PORT}"
RAY = str(Path(sys.executable).parent / "ray")


def why_not() -> str | None:
    """Return why the two nodes cannot be had here, or None."""
    from importlib.util import find_spec

    if find_spec("ray") is None:
        return "ray is not installed; fix: pip install 'metah[ray]'"
    for tool in ("unshare", "nsenter", "ip", "mount"):
        if shutil.which(tool) is None:
            return f"no command {tool}"
    tried = subprocess.run([*ALONE, "true"], capture_output=True, check=False)
    return None if tried.returncode == 0 else "may not make namespaces (needs root)"


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def network_of(process: int | str) -> str:
    return str(Path(f"/proc/{process}/ns/net").readlink())


class TwoNodes:
    """Starts on entry, ends all that it started on exit."""

    def __enter__(self) -> "TwoNodes":
        # The names of Ray's sockets must be short.
        self.folder = Path(tempfile.mkdtemp(prefix="mr", dir="/tmp"))
        token = self.folder / "token"
        token.write_text(secrets.token_hex(32))
        os.environ |= {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
            # A busy machine may start slowly; and a query must not need Ray to see what is dead.
            "RAY_agent_register_timeout_ms": "600000",
            "RAY_worker_register_timeout_seconds": "600",
            "RAY_gcs_server_request_timeout_seconds": "300",
            "RAY_health_check_failure_threshold": "20",
            "RAY_prestart_worker_first_driver": "0",
            "RAY_BACKEND_LOG_LEVEL": "error",
            "HOME": str(self.folder),
        }
        self.started: list[subprocess.Popen[bytes]] = []
        try:
            self._link()
            head = [f"--port={PORT}", f"--temp-dir={self.folder}", "--include-dashboard=false"]
            head += ["--no-monitor"]
            self.head = self._node("--head", *head, ip=HEAD)
            self._until(lambda: self._ready() == 1)
            self.other = self._node(f"--address={ADDRESS}", ip=OTHER, prefix=self.there)
            self._until(lambda: self._ready() == 2)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(ImportError):
            import ray

            ray.shutdown()
        for process in reversed(self.started):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for pid in self._left():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def there(self) -> list[str]:
        """What a command is put behind to run on the second node."""
        return ["nsenter", f"--target={self.space.pid}", "--net", "--mount"]

    def cut(self) -> None:
        run("ip", "link", "set", "metah-a", "down")

    def mend(self) -> None:
        run("ip", "link", "set", "metah-a", "up")

    def lay_over(self, folder: Path, old: Path) -> None:
        """Let the second node see ``old`` at the place of ``folder``."""
        run(*self.there, "mount", "--bind", str(old), str(folder))

    def uncover(self, folder: Path) -> None:
        run(*self.there, "umount", "--lazy", str(folder))

    def lose_other(self) -> None:
        """Kill all processes of the second node at once, as a power cut does."""
        os.killpg(self.other.pid, signal.SIGKILL)
        for pid in self._left(network_of(self.space.pid)):
            if pid != self.space.pid:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def _link(self) -> None:
        self.space = self._start(["unshare", "-n", "-m", "sleep", "3600"])
        mine = network_of("self")
        while network_of(self.space.pid) == mine:
            time.sleep(0.02)
        run("ip", "link", "set", "lo", "up")
        peer = ["peer", "name", "metah-b", "netns", str(self.space.pid)]
        run("ip", "link", "add", "metah-a", "type", "veth", *peer)
        run("ip", "address", "add", f"{HEAD}/24", "dev", "metah-a")
        run("ip", "link", "set", "metah-a", "up")
        run(*self.there, "ip", "link", "set", "lo", "up")
        run(*self.there, "ip", "address", "add", f"{OTHER}/24", "dev", "metah-b")
        run(*self.there, "ip", "link", "set", "metah-b", "up")
        # Ray asks which address leads outside (nothing is sent); without a way it asks DNS, slowly.
        for prefix, gateway in (([], OTHER), (self.there, HEAD)):
            run(*prefix, "ip", "route", "add", "8.8.8.8/32", "via", gateway)

    def _node(self, *options: str, ip: str, prefix: list[str] | None = None):
        size = "--object-store-memory=80000000"
        few = ["--num-cpus=3", "--include-log-monitor=false"]
        # Ray waits for no port that is given, and dies if its agents are slow to choose one.
        ports = ["--dashboard-agent-grpc-port=20001", "--runtime-env-agent-port=20002"]
        ports += ["--metrics-export-port=20003", "--dashboard-agent-listen-port=20004"]
        common = [*few, *ports, size, f"--node-ip-address={ip}"]
        return self._start([*(prefix or []), RAY, "start", *options, *common, "--block"])

    def _start(self, command: list[str]) -> subprocess.Popen[bytes]:
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        self.started.append(process)
        return process

    def _ready(self) -> int:
        return (self.folder / "log").read_text().count("Ray runtime started")

    def _until(self, holds: Callable[[], bool]) -> None:
        for _ in range(9000):
            if holds():
                return
            if any(process.poll() is not None for process in self.started):
                break
            time.sleep(0.1)
        raise RuntimeError((self.folder / "log").read_text()[-2000:])

    def _left(self, space: str | None = None) -> list[int]:
        """Return the processes in a network namespace, by default those with our Ray's folder."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            with suppress(OSError):
                if space is None:
                    mine = str(self.folder).encode() in (entry / "cmdline").read_bytes()
                    mine = mine or str(self.folder).encode() in (entry / "environ").read_bytes()
                else:
                    mine = network_of(entry.name) == space
                if mine:
                    found.append(int(entry.name))
        return found
