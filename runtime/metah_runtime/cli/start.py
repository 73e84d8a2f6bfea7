"""How a command starts: Ctrl-C ends it quietly even while its modules are being imported."""

import signal
from importlib import import_module


def start(module: str) -> None:
    """Import a command's module and call its ``main``.

    Until ``console.run`` takes over, SIGINT ends the process as the system would, without Python's
    traceback; where it is ignored (a job in the background), it stays ignored.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    import_module(module).main()
