"""What is installed is what lies here: the wheel's contents, the pinned versions, the changelog's version."""

import importlib.metadata
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PACKAGES = ("data", "models", "reports", "search_spaces", "trainables")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def files_of(folder: Path) -> set[str]:
    """Files below a package that a user needs, as paths from its parent, e.g. `data/store.py`."""
    return {
        path.relative_to(folder.parent).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built offline from a copy of the sources that has lookalikes of our packages beside them."""
    source = tmp_path_factory.mktemp("source")
    for name in (*PACKAGES, "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("launch.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for lookalike in ("database_dump", "models_old", "search_spaces_tried", "benchmarks"):
        (source / lookalike).mkdir()
        (source / lookalike / "__init__.py").touch()
    built = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "--verbose"]
    command = [sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", str(built), str(source)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "absent from the `packages` configuration" not in result.stdout + result.stderr
    (path,) = built.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def test_the_wheel_holds_the_five_packages_and_launch_alone(wheel):
    top_level = {name.partition("/")[0] for name in wheel.namelist()}
    assert {name for name in top_level if not name.endswith(".dist-info")} == {*PACKAGES, "launch.py"}


@pytest.mark.parametrize("package", PACKAGES)
def test_the_wheel_holds_every_file_of(package, wheel):
    ours = files_of(ROOT / package)
    assert f"{package}/py.typed" in ours
    assert sorted(ours - set(wheel.namelist())) == []


def test_the_wheel_holds_configuration_and_templates(wheel):
    names = wheel.namelist()
    assert "search_spaces/config.yaml" in names
    assert any(re.fullmatch(r"search_spaces/search/\w+\.yaml", name) for name in names)
    assert any(name.startswith("reports/templates/") for name in names)


def test_the_wheel_installs_the_command_heartsweep(wheel):
    (name,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert "heartsweep = launch:main" in wheel.read(name).decode()


def pins() -> dict[str, str]:
    """Version of every package in constraints.txt; a line that is no exact pin fails."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    found = {}
    for line in lines:
        if line and not line.startswith("#"):
            match = re.fullmatch(r"([A-Za-z0-9._-]+)==([0-9][A-Za-z0-9.]*)", line)
            assert match, f"not an exact pin: {line!r}"
            name = canonicalize_name(match[1])
            assert name not in found, f"pinned twice: {name}"
            found[name] = match[2]
    return found


def direct_requirements() -> list[Requirement]:
    """What pyproject.toml asks for: to build, to run, to develop."""
    project = PROJECT["project"]
    texts = [*PROJECT["build-system"]["requires"], *project["dependencies"]]
    for extra in project["optional-dependencies"].values():
        texts += extra
    return [Requirement(text) for text in texts]


@pytest.mark.parametrize("requirement", direct_requirements(), ids=lambda requirement: requirement.name)
def test_the_pinned_version_is_one_that_pyproject_admits(requirement):
    assert requirement.specifier.contains(pins()[canonicalize_name(requirement.name)])


def test_every_package_that_ours_bring_along_is_pinned():
    pinned = pins()
    reached, waiting = set(), direct_requirements()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        for extra in ("", *requirement.extras):
            if (name, extra) not in reached:
                reached.add((name, extra))
                waiting += requirements_of(name, extra)
    # A CUDA build of torch brings libraries that its own metadata pins.
    unpinned = {
        name for name, _ in reached if name not in pinned and not name.startswith(("nvidia-", "cuda-", "triton"))
    }
    assert unpinned == set()


def requirements_of(name: str, extra: str) -> list[Requirement]:
    """What an installed package needs on this machine, for one of its extras ("" for none)."""
    texts = importlib.metadata.requires(name) or []
    return [
        requirement
        for requirement in map(Requirement, texts)
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra})
    ]


def test_torch_is_pinned_by_the_version_that_is_the_cpu_build_here_and_cuda_elsewhere():
    assert pins()["torch"] == "2.13.0"


def test_the_changelog_begins_with_the_version_of_the_project():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## \[(\d+\.\d+\.\d+)\]", changelog, flags=re.MULTILINE)
    assert newest
    assert newest[1] == PROJECT["project"]["version"]
