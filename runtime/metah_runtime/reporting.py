"""What a library function tells its caller while it works: progress and warnings, by callables.

The commands pass ``console.progress_bar`` and ``console.warn``; without them no progress is shown
and a warning is a Python warning.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Literal, Protocol, TypeAlias

Warn: TypeAlias = Callable[[str], None]
"""Takes one line of text."""


class Advance(Protocol):
    """What moves a progress bar on."""

    def __call__(self, n: int = 1, *, note: str = "", total: int | None = None) -> None:
        """Count ``n`` items as done; show ``note`` below the bar; set the total if given."""


class Progress(Protocol):
    """What shows the progress of a step, as a context manager that yields its ``Advance``."""

    def __call__(
        self,
        label: str,
        total: int | None = None,
        unit: str = "",
        *,
        redraw: Literal["always", "advance"] = "always",
    ) -> AbstractContextManager[Advance]:
        """Begin a step of ``total`` items; neither ``total`` nor ``unit``: nothing is counted.

        redraw: ten times a second, or only when it moves on, which leaves what is timed in between
        undisturbed.
        """


@contextmanager
def no_progress(
    label: str,  # noqa: ARG001
    total: int | None = None,  # noqa: ARG001
    unit: str = "",  # noqa: ARG001
    *,
    redraw: Literal["always", "advance"] = "always",  # noqa: ARG001
) -> Iterator[Advance]:
    """Show nothing."""
    yield ignore


def ignore(n: int = 1, *, note: str = "", total: int | None = None) -> None:
    """Count nothing: the ``Advance`` of ``no_progress``."""


def python_warning(message: str) -> None:
    """Issue ``message`` as a UserWarning of the caller's caller."""
    warnings.warn(message, UserWarning, stacklevel=3)
