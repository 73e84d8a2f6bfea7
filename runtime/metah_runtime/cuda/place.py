"""What all indexes on one GPU share: its stream, buffers, loader, and one lock."""

import threading

from metah_runtime.cuda.driver import Device
from metah_runtime.cuda.loader import Loader
from metah_runtime.cuda.workspace import Workspace


class Place:
    """One GPU in use; searches there come one after the other, as its stream would have them."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.lock = threading.RLock()
        self.users = 0
        self.workspace = Workspace(device)
        self.loader = Loader(device)


_places: dict[int, Place] = {}
_registry = threading.Lock()


def acquire(device: Device) -> Place:
    """Return the place of a device, for one more user. Inside ``with device:``, as ``release``."""
    with _registry:
        found = _places.get(id(device)) or Place(device)
        _places[id(device)] = found
        found.users += 1
        return found


def release(place: Place) -> None:
    """Let go of a place; after the last user all of it is given back."""
    with _registry:
        place.users -= 1
        if place.users == 0:
            del _places[id(place.device)]
            place.loader.close()
            place.workspace.close()
