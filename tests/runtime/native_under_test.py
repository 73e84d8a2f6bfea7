"""Pytest plugin: test the native core in the folder METAH_NATIVE instead of the installed one.

Used by ``make test-asan`` and ``make test-avx512-emulated``:
``METAH_NATIVE=build-asan python -m pytest -p tests.runtime.native_under_test``.
"""

import importlib.util
import os
import sys
from pathlib import Path


def load(folder: str) -> None:
    (path,) = Path(folder).glob("_native.*.so")
    spec = importlib.util.spec_from_file_location("metah_runtime._native", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["metah_runtime._native"] = module
    spec.loader.exec_module(module)
    import metah_runtime

    metah_runtime._native = module


if "METAH_NATIVE" in os.environ:
    load(os.environ["METAH_NATIVE"])
