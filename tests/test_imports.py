"""Imports run one way: launch -> search_spaces, reports -> trainables -> models, data."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "launch": {"search_spaces", "reports", "trainables", "models", "data"},
    "search_spaces": {"trainables", "models", "data"},
    "reports": {"trainables", "models", "data"},
    "trainables": {"models", "data"},
    "models": set(),
    "data": set(),
}
MAY_NOT_NAME = {
    "models": {"ray", "hydra", "omegaconf", "optuna"},
    "data": {"ray", "hydra", "omegaconf", "optuna"},
    "trainables": {"hydra", "omegaconf"},  # workers resolve `_target_` with code of ours
}
NEVER_IMPORTED = {"tests", "benchmarks", "conftest"}


def modules_of(package: str) -> list[Path]:
    """The source files of a package, or the one of a module at the root."""
    return sorted((ROOT / package).rglob("*.py")) or [ROOT / f"{package}.py"]


def imported(source: str) -> set[str]:
    """Top-level names that a source imports anywhere in it, in a function or for the type checker alone too.

    A relative import counts as ".".
    """
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add("." if node.level else str(node.module).partition(".")[0])
    return names


def loaded_by(statement: str, suspects: set[str]) -> set[str]:
    """Those of `suspects` that a fresh interpreter holds after a statement."""
    program = f"import sys; {statement}; print(*({suspects!r} & set(sys.modules)))"
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split())


def test_imports_are_found_wherever_they_stand():
    source = (
        "import a.b, c\nfrom d.e import f\nfrom . import g\ndef h():\n    from i import j\nif k:\n    import l as m\n"
    )
    assert imported(source) == {"a", "c", "d", ".", "i", "l"}


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_run_one_way_from(package):
    ours = set(MAY_IMPORT) | NEVER_IMPORTED
    forbidden = (ours - MAY_IMPORT[package] - {package}) | MAY_NOT_NAME.get(package, set())
    found = {str(path.relative_to(ROOT)): imported(path.read_text(encoding="utf-8")) for path in modules_of(package)}
    assert {path: names & forbidden for path, names in found.items() if names & forbidden} == {}


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_no_import_is_relative_in(package):
    assert [path for path in modules_of(package) if "." in imported(path.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize("module", ["launch", "search_spaces.compose", "search_spaces.schema"])
def test_a_mistake_is_found_before_ray_and_torch_are_loaded_by(module):
    assert loaded_by(f"import {module}", {"ray", "torch"}) == set()


@pytest.mark.parametrize("module", ["data.record", "data.ptb_xl", "data.store"])
def test_recordings_are_read_without_torch_by(module):
    assert loaded_by(f"import {module}", {"torch"}) == set()


def test_a_module_that_is_loaded_is_noticed():
    assert loaded_by("import json", {"json", "ray"}) == {"json"}
