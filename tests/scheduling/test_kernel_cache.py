"""Where compiled kernels are kept: beside the source, or a private copy where that cannot be written."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest

from scheduling.kernels.jit import cache_dir

PRIVATE = Path(tempfile.gettempdir()) / f"slos-{os.getuid()}"


def source(folder: Path, text: str) -> Path:
    """Write a source file of its own; cache_dir remembers its answer for each path."""
    path = folder / f"kernel_{len(list(folder.glob('*.py')))}.py"
    path.write_text(text)
    return path


def test_beside_the_source_and_keyed_by_its_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLOS_KERNEL_CACHE", raising=False)
    first, other = source(tmp_path, "a = 1\n"), source(tmp_path, "a = 2\n")
    assert cache_dir(first).parent == tmp_path / "__pycache__"
    assert cache_dir(first).name.split("-")[-1] != cache_dir(other).name.split("-")[-1]


def test_a_folder_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SLOS_KERNEL_CACHE", str(tmp_path / "file"))
    chosen = cache_dir(source(tmp_path, f"a = {tmp_path.name!r}\n"))
    assert chosen.parent == PRIVATE
    (chosen / "probe").write_text("")
    shutil.rmtree(chosen)


def test_what_was_compiled_at_install_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of another user, or one that is read-only, is not written to; what it holds is used."""
    path = source(tmp_path, f"b = {tmp_path.name!r}\n")
    monkeypatch.setenv("SLOS_KERNEL_CACHE", str(tmp_path / "shipped"))
    shipped = cache_dir(path)
    assert shipped.parent == tmp_path / "shipped"
    (shipped / "kernel.nbc").write_bytes(b"compiled")
    cache_dir.cache_clear()
    if os.getuid() == 0:
        os.chown(shipped, 65534, 65534)
    shipped.chmod(0o500)
    chosen = cache_dir(path)
    assert chosen == PRIVATE / shipped.name
    assert (chosen / "kernel.nbc").read_bytes() == b"compiled"
    shutil.rmtree(chosen)
    shipped.chmod(0o700)
