"""What all indexes on one GPU share: its stream, buffers, uploads, and one lock."""

import threading

from metah_runtime.cuda.driver import Device
from metah_runtime.cuda.uploader import Uploader
from metah_runtime.cuda.workspace import Workspace


class GpuContext:
    """One GPU in use. Searches hold its lock: they share one stream and its buffers."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.lock = threading.RLock()
        self.users = 0
        self.workspace = Workspace(device)
        self.uploader = Uploader(device)


_contexts: dict[int, GpuContext] = {}
_registry = threading.Lock()


def acquire(device: Device) -> GpuContext:
    """Return the context of a device, with one user more. Call inside ``with device:``."""
    with _registry:
        context = _contexts.get(id(device)) or GpuContext(device)
        _contexts[id(device)] = context
        context.users += 1
        return context


def release(context: GpuContext) -> None:
    """Remove one user; the last one's call frees everything. Call inside ``with device:``."""
    with _registry:
        context.users -= 1
        if context.users == 0:
            del _contexts[id(context.device)]
            context.uploader.close()
            context.workspace.close()
