"""What somebody gets who installs the package without the repository."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_wheel_ships_every_recipe_and_both_commands(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("data_tools", "megatron_ext", "recipes"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*build, "--wheel-dir", str(tmp_path), str(source)], check=True)

    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    files = [path.relative_to(ROOT / "recipes") for path in ROOT.glob("recipes/**/*") if path.is_file()]
    recipes = {f"megatron_ext/_recipes/{path}" for path in files}
    assert "megatron_ext/_recipes/demo/pretrain.yaml" in recipes
    assert recipes <= names
    (commands,) = (name for name in names if name.endswith("entry_points.txt"))
    text = zipfile.ZipFile(wheel).read(commands).decode()
    assert "data-tools = data_tools.__main__:main" in text
    assert "megatron-ext = megatron_ext.__main__:main" in text
