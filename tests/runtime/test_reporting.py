"""Progress and warnings of library functions: the defaults, and the console as a Progress."""

import pytest

from metah_runtime.cli import console
from metah_runtime.reporting import Progress, no_progress, python_warning


@pytest.mark.parametrize("progress", [no_progress, console.progress_bar])
def test_a_step_may_be_counted_or_not(progress: Progress) -> None:
    with progress("loading"):
        pass
    with progress("timing", 2, "sizes", redraw="advance") as advance:
        advance()
        advance(1, note="last", total=2)


def test_a_warning_is_a_python_warning_of_who_called_the_library() -> None:
    def library_function() -> None:
        python_warning("beware")

    with pytest.warns(UserWarning, match="^beware$") as caught:
        library_function()
    assert caught[0].filename == __file__
