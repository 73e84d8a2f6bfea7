"""What a process that decodes hostile images gives up: privileges, files, network, memory.

Each defence is applied where the kernel has it: no new privileges, Landlock (files and TCP), the
user nobody or no capabilities (where the process is root), resource limits, and a seccomp filter
that allows what decoding needs and refuses every other system call with EPERM.
"""

import ctypes
import os
import struct
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from metah_runtime.images.syscalls import ALLOWED, ARCHITECTURES, CLONE, CLONE3, TGKILL

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP = 38, 22
_SECCOMP_FILTER = 2
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_CAPSET = {"x86_64": 126, "aarch64": 91}
_NOBODY = 65534
_READ = 1 << 2 | 1 << 3
_FILE_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
"""Access rights to files that each version of Landlock's interface knows, as a bit set."""
_CLONE_THREAD = 0x00010000
_ENOSYS, _EPERM = 38, 1
_RET_KILL, _RET_ERRNO, _RET_ALLOW = 0x80000000, 0x00050000, 0x7FFF0000


@dataclass(frozen=True, slots=True)
class SandboxStatus:
    """The defences that are active in a decoding process, and those missing with the reason."""

    active: tuple[str, ...]
    missing: tuple[tuple[str, str], ...]

    @property
    def complete(self) -> bool:
        """Whether nothing is missing."""
        return not self.missing


def status() -> SandboxStatus:
    """Start a decoding process and return which defences are active in it.

    Raises BackendUnavailable if no such process can be started.
    """
    from metah_runtime.images.preprocess import Preprocess
    from metah_runtime.images.worker_process import WorkerProcess, WorkerSettings

    with WorkerProcess(WorkerSettings(preprocess=Preprocess(height=1, width=1))) as worker:
        found = worker.hello()
    return SandboxStatus(tuple(found["active"]), tuple((n, why) for n, why in found["missing"]))


def enter(*, memory: int, opens_files: bool) -> SandboxStatus:
    """Give up for good what the rest of this process does not need.

    memory: bytes of address space; opens_files: whether it opens files by name, else it reads only
    the folders that Python imports from. All imports must be done, for nobody may not read them.
    """
    steps: tuple[tuple[str, Callable[[], None]], ...] = (
        ("resource limits", lambda: _limit_resources(memory)),
        ("no new privileges", lambda: _prctl(_PR_SET_NO_NEW_PRIVS, 1)),
        ("landlock", lambda: _landlock(["/"] if opens_files else _library_folders())),
        ("unprivileged user", lambda: _drop_privileges(opens_files)),
        ("seccomp", _seccomp),
    )
    active, missing = [], []
    for name, step in steps:
        try:
            step()
        except (OSError, ValueError, ImportError, AttributeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            missing.append((name, reason))
        else:
            active.append(name)
    return SandboxStatus(tuple(active), tuple(missing))


def _limit_resources(memory: int) -> None:
    import resource

    limits = {resource.RLIMIT_AS: memory, resource.RLIMIT_CORE: 0, resource.RLIMIT_FSIZE: 1 << 16}
    for kind, limit in limits.items():
        _, hard = resource.getrlimit(kind)
        new = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (new, new))


def _drop_privileges(opens_files: bool) -> None:
    """Become nobody where root; one that opens the user's files keeps its user, without powers."""
    if os.geteuid() != 0:
        return
    if opens_files:
        _drop_capabilities()
        return
    os.setgroups([])
    os.setresgid(_NOBODY, _NOBODY, _NOBODY)
    os.setresuid(_NOBODY, _NOBODY, _NOBODY)


def _drop_capabilities() -> None:
    """Drop all capabilities but the one to read every file (CAP_DAC_READ_SEARCH)."""
    kept = 1 << 2
    header = struct.pack("=Ii", 0x20080522, 0)
    _syscall(_CAPSET[os.uname().machine], header, struct.pack("=6I", kept, kept, 0, 0, 0, 0))


def _library_folders() -> list[str]:
    names = [*sys.path, sys.prefix, sys.base_prefix, "/lib", "/lib64", "/usr/lib", "/usr/lib64"]
    return [name for name in dict.fromkeys(names) if os.path.isdir(name)]  # noqa: PTH112


def _landlock(readable: Sequence[str]) -> None:
    """Refuse all access to files but reading below some folders, and all TCP connections."""
    version = _syscall(_LANDLOCK_CREATE, None, 0, 1)
    files = _FILE_RIGHTS[max(known for known in _FILE_RIGHTS if known <= version)]
    network = 3 if version >= 4 else 0
    scoped = 3 if version >= 6 else 0
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    rules = _syscall(_LANDLOCK_CREATE, struct.pack("=QQQ", files, network, scoped)[:size], size, 0)
    try:
        for name in readable:
            with suppress(OSError):
                folder = os.open(name, os.O_PATH | os.O_CLOEXEC)
                try:
                    _syscall(_LANDLOCK_ADD, rules, 1, struct.pack("=Qi", _READ, folder), 0)
                finally:
                    os.close(folder)
        _syscall(_LANDLOCK_RESTRICT, rules, 0)
    finally:
        os.close(rules)


def _seccomp() -> None:
    """Allow the calls of ``ALLOWED``, new threads and own signals; refuse the rest with EPERM."""
    machine = os.uname().machine
    if machine not in ARCHITECTURES or sys.maxsize < 1 << 32:
        raise ValueError(f"no list of system calls for {machine}")
    program = _filter(*ARCHITECTURES[machine], os.getpid())
    memory = ctypes.create_string_buffer(program, len(program))
    _prctl(_PR_SET_SECCOMP, _SECCOMP_FILTER, _Program(len(program) // 8, ctypes.addressof(memory)))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def _filter(architecture: int, column: int, pid: int) -> bytes:
    """Return the BPF program; fields of seccomp_data: nr at 0, arch at 4, first argument at 16."""
    load, equal, bits, give = 0x20, 0x15, 0x45, 0x06

    def code(op: int, value: int, yes: int = 0, no: int = 0) -> bytes:
        return struct.pack("=HBBI", op, yes, no, value)

    def first_argument(number: int, test: int, value: int) -> list[bytes]:
        return [
            code(equal, number, 0, 4),
            code(load, 16),
            code(test, value, 0, 1),
            code(give, _RET_ALLOW),
            code(give, _RET_ERRNO | _EPERM),
        ]

    parts = [
        code(load, 4),
        code(equal, architecture, 1, 0),
        code(give, _RET_KILL),
        code(load, 0),
        # The flags of clone3 are in memory, out of reach: the C library falls back to clone.
        code(equal, CLONE3[column], 0, 1),
        code(give, _RET_ERRNO | _ENOSYS),
        *first_argument(CLONE[column], bits, _CLONE_THREAD),
        *first_argument(TGKILL[column], equal, pid),
    ]
    for number in sorted(numbers[column] for numbers in ALLOWED.values() if numbers[column] >= 0):
        parts += [code(equal, number, 0, 1), code(give, _RET_ALLOW)]
    return b"".join([*parts, code(give, _RET_ERRNO | _EPERM)])


def _prctl(option: int, *arguments: object) -> None:
    rest = [*arguments, *[0] * (4 - len(arguments))]
    converted = [
        ctypes.byref(a) if isinstance(a, ctypes.Structure) else ctypes.c_ulong(a)  # type: ignore[arg-type]
        for a in rest
    ]
    _checked(_libc().prctl(option, *converted))


def _syscall(number: int, *arguments: int | bytes | None) -> int:
    converted = [ctypes.c_long(a) if isinstance(a, int) else ctypes.c_char_p(a) for a in arguments]
    return _checked(_libc().syscall(ctypes.c_long(number), *converted))


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _libc() -> ctypes.CDLL:
    if not sys.platform.startswith("linux"):
        raise OSError(_ENOSYS, f"not for {sys.platform}")
    return ctypes.CDLL(None, use_errno=True)
