"""matplotlib, imported so that it writes nothing into the home folder."""

import atexit
import os
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metah_runtime.errors import MissingExtra

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(**settings: Any) -> "Figure":
    """Return a figure that draws into memory, without a display.

    matplotlib's list of fonts goes to METAH_CACHE, or to a folder that is removed at the end.
    Raises MissingExtra.
    """
    if "MPLCONFIGDIR" not in os.environ:
        cache = os.environ.get("METAH_CACHE")
        folder = Path(cache, "matplotlib") if cache else Path(tempfile.mkdtemp(prefix="metah-"))
        folder.mkdir(parents=True, exist_ok=True)
        if not cache:
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.environ["MPLCONFIGDIR"] = str(folder)
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("matplotlib", "train") from error
    figure = Figure(facecolor="white", **settings)
    FigureCanvasAgg(figure)
    return figure


def font_folder() -> Path:
    """Return the folder of the fonts that matplotlib ships, without importing it."""
    spec = find_spec("matplotlib")
    if spec is None or spec.origin is None:
        raise MissingExtra("matplotlib", "train")
    return Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf"
