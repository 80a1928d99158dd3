"""The set-up files: what is packaged, what is pinned, which Python is taken."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FIND_PYTHON = ROOT / "requirements" / "find_python.sh"
TOO_OLD = "#!/bin/sh\necho 'it is Python 3.11' >&2\nexit 1\n"
BROKEN_SHIM = "#!/bin/sh\necho 'python3.12: command not found' >&2\nexit 127\n"


def find_python(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs find_python.sh where `folder` comes first on the PATH and holds the only pyenv."""
    return subprocess.run(
        ["bash", str(FIND_PYTHON)],
        env={"PATH": f"{folder}{os.pathsep}/usr/bin:/bin", "PYENV_ROOT": str(folder / "pyenv"), **environment},
        capture_output=True,
        text=True,
    )


def write_command(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def shadow_every_python(folder: Path) -> None:
    for name in ("python3.12", "python3.13", "python3.14", "python3"):
        write_command(folder / name, BROKEN_SHIM)


def requirement_names() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    requirements = [*project["dependencies"], *(name for extra in extras for name in extra)]
    return sorted({re.split(r"[\s;<>=!~\[]", requirement)[0].lower() for requirement in requirements})


@pytest.mark.parametrize("package", ["data_tools", "megatron_ext"])
def test_every_folder_with_modules_is_a_package_and_so_gets_installed(package: str) -> None:
    folders = {path.parent for path in (ROOT / package).rglob("*.py")}
    assert [str(folder) for folder in sorted(folders) if not (folder / "__init__.py").is_file()] == []


@pytest.mark.parametrize("name", requirement_names())
def test_every_requirement_is_pinned(name: str) -> None:
    constraints = (ROOT / "requirements" / "constraints.txt").read_text().lower().replace("_", "-")
    assert re.search(rf"^{re.escape(name.replace('_', '-'))}==", constraints, re.MULTILINE)


def test_a_python_that_fails_when_run_is_passed_over(tmp_path: Path) -> None:
    shadow_every_python(tmp_path)
    good = write_command(tmp_path / "pyenv/versions/3.12.1/bin/python", f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    result = find_python(tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == sys.executable
    assert good.is_file()


def test_no_python_at_all_is_an_error_of_the_environment_with_a_remedy(tmp_path: Path) -> None:
    shadow_every_python(tmp_path)
    result = find_python(tmp_path)
    assert result.returncode == 4
    assert "found no Python >= 3.12" in result.stderr
    assert "make setup PYTHON=/path/to/python3.12" in result.stderr


def test_a_named_python_is_never_replaced_by_another(tmp_path: Path) -> None:
    old = write_command(tmp_path / "old", TOO_OLD)
    write_command(tmp_path / "python3.12", f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    result = find_python(tmp_path, PYTHON=str(old))
    assert result.returncode == 4
    assert f"PYTHON={old} cannot be used: it is Python 3.11" in result.stderr
