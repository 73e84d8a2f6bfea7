"""The lock with hashes, the floors of the extras, and the exact versions agree."""

import re
import tomllib
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from tests.release.lock import ROOT, requirements

LOCK = (ROOT / "serve.lock").read_text()
LOCKED = dict(re.findall(r"^([\w.-]+)==(\S+) \\$", LOCK, re.MULTILINE))

# The first versions without a published hole, as of November 2026.
FLOORS = {
    "h11": "0.16",
    "lightning-fabric": "2.6.6",
    "python-multipart": "0.0.31",
    "starlette": "1.3.1",
}


def pinned() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if "==" in line and not line.startswith("#")]
    return {canonicalize_name(name): version.strip() for name, version in pairs}


def all_requirements() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts = [
        *project["dependencies"],
        *chain.from_iterable(project["optional-dependencies"].values()),
    ]
    return [Requirement(text) for text in texts if not text.startswith("metah[")]


def test_every_locked_version_has_hashes() -> None:
    blocks = re.split(r"\n(?=[\w.-]+==)", LOCK)[1:]
    assert len(blocks) == len(LOCKED) > 20
    for block in blocks:
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", block), block.splitlines()[0]


def test_the_lock_holds_what_the_server_asks_for() -> None:
    names = {canonicalize_name(name): version for name, version in LOCKED.items()}
    for text in requirements("serve"):
        need = Requirement(text)
        assert need.specifier.contains(names[canonicalize_name(need.name)]), text
    assert "torch" not in names


def test_the_lock_and_the_constraints_agree() -> None:
    exact = pinned()
    assert {n: v for n, v in LOCKED.items() if exact.get(canonicalize_name(n)) != v} == {}


def test_exact_versions_satisfy_every_extra() -> None:
    exact = pinned()
    for need in all_requirements():
        version = exact.get(canonicalize_name(need.name))
        assert version is None or need.specifier.contains(version), need


@pytest.mark.parametrize("name", FLOORS)
def test_floors_leave_out_versions_with_known_holes(name: str) -> None:
    found = [need for need in all_requirements() if need.name == name]
    assert found, name
    for need in found:
        floors = [str(item.version) for item in need.specifier if item.operator == ">="]
        assert floors == [FLOORS[name]]


def test_the_security_policy_is_part_of_the_sources() -> None:
    text = Path(ROOT, "SECURITY.md").read_text()
    assert "private" in text
    assert "Supported versions" in text
