"""The lock files, `environment.yml` and the pre-commit hooks say one thing: what `pyproject.toml` asks for."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.study_helpers import ROOT

PYTHONS = ("3.11", "3.12", "3.13")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pinned(text: str) -> list[str]:
    """`name==version ; marker` of every line that pins a package."""
    return [line.rstrip("\\ ") for line in text.splitlines() if re.match(r"[A-Za-z0-9]", line)]


def lock() -> list[str]:
    return [line for name in ("requirements.lock", "torch.lock") for line in pinned((ROOT / name).read_text())]


def environment(python: str) -> dict[str, str]:
    """Where markers are evaluated: CPython on Linux."""
    return {
        "python_version": python,
        "python_full_version": f"{python}.1",
        "implementation_name": "cpython",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "os_name": "posix",
        "platform_machine": "x86_64",
        "platform_python_implementation": "CPython",
        "extra": "",
    }


def versions(python: str) -> dict[str, Version]:
    """What the lock installs on Linux under a Python version."""
    found = [Requirement(line) for line in lock()]
    return {
        canonicalize_name(one.name): Version(next(iter(one.specifier)).version)
        for one in found
        if one.marker is None or one.marker.evaluate(environment(python))
    }


def asked() -> list[Requirement]:
    """The dependencies of the package and of its extra `dev`, which contains others."""
    extras = PROJECT["optional-dependencies"]
    found, left = [], [*map(Requirement, PROJECT["dependencies"]), Requirement("increlora[dev]")]
    while left:
        one = left.pop()
        if one.name == "increlora":
            left += [Requirement(line) for extra in one.extras for line in extras[extra]]
        else:
            found.append(one)
    return found


@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_has_what_the_project_asks_for(python: str) -> None:
    have = versions(python)
    for one in asked():
        assert one.specifier.contains(have[canonicalize_name(one.name)]), one
    assert f"Programming Language :: Python :: {python}" in PROJECT["classifiers"]


def test_every_locked_package_has_hashes_but_torch() -> None:
    """A list of hashes fits either torch's CUDA builds and their packages or its CPU builds; see scripts/lock."""
    text = (ROOT / "requirements.lock").read_text()
    blocks = re.split(r"^(?=[A-Za-z0-9])", text, flags=re.MULTILINE)[1:]
    assert [block for block in blocks if not re.search(r"--hash=sha256:[0-9a-f]{64}", block)] == []
    assert not [line for line in pinned(text) if re.match(r"torch==|nvidia-|cuda-|triton", line)]
    assert re.fullmatch(r"torch==[\d.]+\n", (ROOT / "torch.lock").read_text())


def test_the_lock_is_of_the_index_and_not_of_a_machine() -> None:
    """No folder of an editable install, no address, no version that only one build of a package has."""
    assert [line for line in lock() if not re.fullmatch(r"[a-z0-9.-]+==[\w.]+( ; .+)?", line)] == []


def test_conda_gets_the_versions_of_the_lock() -> None:
    *_, pip = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    editable, *rest = pip["pip"]
    assert editable == "--editable ."
    assert sorted(rest) == sorted(lock())


def test_the_rules_environment_has_what_the_study_needs() -> None:
    *_, pip = yaml.safe_load((ROOT / "workflow/envs/increlora.yaml").read_text())["dependencies"]
    study = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["study"]
    assert pip["pip"] == sorted(line for line in study if not line.startswith("snakemake"))


def test_hooks_and_jobs_use_the_locked_tools() -> None:
    """No second version of ruff or mypy: hooks run in the project's environment."""
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert {repository["repo"] for repository in hooks} == {"local"}
    for hook in hooks[0]["hooks"]:
        assert hook["language"] == "system"
        assert hook["entry"].startswith("scripts/env "), hook["id"]


def test_the_jobs_cover_every_python_and_every_check() -> None:
    text = Path(ROOT / ".github/workflows/ci.yml").read_text()
    jobs = yaml.safe_load(text)["jobs"]
    assert jobs["fast"]["strategy"]["matrix"]["python"] == list(PYTHONS)
    for command in re.findall(r"^ +- run: scripts/env (\S+)", text, re.MULTILINE):
        assert not command.startswith("scripts/") or (ROOT / command).is_file(), command
