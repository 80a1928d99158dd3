"""A run can say which code it had: by content everywhere, by commit where its files are part of a checkout."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from megatron_ext.runtime.code_version import code_version, commit_of, content_of


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "checkout" / "thing"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "maths.py").write_text("ONE = 1\n")
    return folder


def git(folder: Path, *words: str) -> str:
    who = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.org"]
    return subprocess.run(["git", "-C", str(folder), *who, *words], capture_output=True, text=True, check=True).stdout


def commit(package: Path) -> str:
    git(package.parent, "init", "-q")
    git(package.parent, "add", "thing")
    git(package.parent, "commit", "-q", "-m", "All")
    return git(package.parent, "rev-parse", "HEAD").strip()


def test_a_copy_elsewhere_is_the_same_code(package: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(package, tmp_path / "site-packages" / "thing"))
    (copy / "notes.txt").write_text("no code")
    assert content_of([copy]) == content_of([package])
    assert content_of([package])[1] == 2


def test_an_edited_line_is_other_code(package: Path) -> None:
    before = content_of([package])
    (package / "maths.py").write_text("ONE = 2\n")
    assert content_of([package])[0] != before[0]


def test_a_clean_checkout_has_a_commit_and_no_changes(package: Path) -> None:
    made = commit(package)
    assert commit_of([package]) == (made, ())


def test_changed_and_new_files_of_a_checkout_are_named(package: Path) -> None:
    made = commit(package)
    (package / "maths.py").write_text("ONE = 2\n")
    (package / "new file.py").write_text("TWO = 2\n")
    assert commit_of([package]) == (made, ("thing/maths.py", "thing/new file.py"))


def test_a_package_installed_inside_a_checkout_is_of_no_commit(package: Path) -> None:
    commit(package)
    installed = Path(shutil.copytree(package, package.parent / ".venv" / "site-packages" / "thing"))
    assert commit_of([installed]) == (None, None)


def test_files_of_no_checkout_are_of_no_commit(package: Path) -> None:
    assert commit_of([package]) == (None, None)


def test_this_code_is_found() -> None:
    found = code_version()
    assert len(found.sha256) == 64
    assert found.files > 300
