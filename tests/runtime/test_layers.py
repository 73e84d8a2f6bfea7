"""The layers: the runtime never loads torch, and help never loads what it does not need."""

import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import metah_runtime
from metah_runtime import Index

HEAVY = ("torch", "onnxruntime", "onnx", "onnxscript", "sklearn", "matplotlib")
OPTIONAL = ("cuda", "pycuda", "tensorrt", "tensorrt_rtx")
"""What a module that serves one optional package alone may import at its top."""


def loaded_after(code: str) -> set[str]:
    """Run code in a fresh process; return the top-level names of what it imported."""
    report = "import json, sys; print(json.dumps(sorted({n.split('.')[0] for n in sys.modules})))"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def modules() -> list[str]:
    found = pkgutil.walk_packages(metah_runtime.__path__, "metah_runtime.")
    return sorted(module.name for module in found)


def test_the_whole_runtime_loads_no_torch_and_no_onnxruntime() -> None:
    names = modules()
    assert "metah_runtime.model.encoder" in names
    assert "metah_runtime.model.runners.onnxruntime_runner" in names
    code = f"""
import importlib
for name in {names}:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        assert error.name.partition(".")[0] in {OPTIONAL}, (name, error)
"""
    loaded = loaded_after(code)
    assert loaded.isdisjoint({*HEAVY, "metah_train", "metah_export"})


@pytest.mark.parametrize(
    ("package", "program"),
    [
        ("metah_runtime", "metah-search"),
        ("metah_train", "metah-train"),
        ("metah_export", "metah-export"),
    ],
)
def test_help_loads_neither_torch_nor_onnxruntime(package: str, program: str) -> None:
    code = f"""
import click
from metah_runtime.cli import console
from {package}.cli.main import cli

def show(command, path):
    try:
        command.main([*path, "--help"], prog_name="{program}", standalone_mode=False)
    except SystemExit as end:
        assert end.code in (0, None)

show(cli, [])
with click.Context(cli) as ctx:
    for name in cli.list_commands(ctx):
        show(cli, [name])
"""
    assert loaded_after(code).isdisjoint(HEAVY)


def test_the_help_of_metah_search_loads_nothing_heavy() -> None:
    code = "from metah_runtime.cli.main import cli\ncli.main(['--help'], standalone_mode=False)"
    assert loaded_after(code).isdisjoint({*HEAVY, "numpy", "PIL", "rich"})


def test_a_search_by_code_loads_only_what_it_needs(tmp_path: Path) -> None:
    with Index.create(tmp_path / "index", bits=16) as store:
        store.add(np.zeros((3, 2), np.uint8), paths=["a", "b", "c"])
    code = f"""
from metah_runtime.cli.main import cli
cli.main(["query", {str(tmp_path / "index")!r}, "--code", "0f0f"], standalone_mode=False)
assert "metah_runtime.html.gallery" not in sys.modules
"""
    loaded = loaded_after(f"import sys\n{code}")
    assert "numpy" in loaded
    assert loaded.isdisjoint({*HEAVY, "PIL", "rich", "shutil", "secrets", "socket", "asyncio"})


def test_the_public_names_are_lazy_and_complete() -> None:
    assert loaded_after("import metah_runtime").isdisjoint({*HEAVY, "numpy", "PIL"})
    assert {"Bundle", "CodeIndex", "Encoder", "Index", "Matches", "RangeMatches"} == set(
        metah_runtime.__all__
    )
    for name in metah_runtime.__all__:
        assert getattr(metah_runtime, name).__name__ == name
        assert name in dir(metah_runtime)
    with pytest.raises(AttributeError, match="has no attribute 'Indx'"):
        metah_runtime.Indx  # noqa: B018


def test_the_summaries_in_the_help_are_those_of_the_commands() -> None:
    import click

    from metah_runtime.cli.main import cli

    with click.Context(cli) as ctx:
        for name, (_, summary) in cli.lazy.items():  # type: ignore[attr-defined]
            command = cli.get_command(ctx, name)
            assert command is not None
            assert command.name == name
            assert command.help is not None
            assert command.help.split()[0] == summary.split()[0]
            assert summary.endswith(".")
