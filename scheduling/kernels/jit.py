"""The decorator of all kernels, and where compiled code is kept.

`python -m scheduling.compile` fills the cache at install, so that no first request pays for compilation. The cache of
a module lies in __pycache__ beside it, keyed by its text and that of the modules it builds on, because numba itself
does not notice a change in a kernel that another one calls. Where that folder cannot be written (a read-only install)
it is copied to a private folder under the system's temporary directory: numba insists on writing where it reads.
SLOS_KERNEL_CACHE names another folder.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import ParamSpec, TypeVar, cast

try:
    import numba
except ImportError as error:  # pragma: no cover - depends on the installation
    raise ImportError(
        "the planner needs numba; install the project with one of its extras, such as controller"
    ) from error

if numba.config.DISABLE_JIT:
    raise RuntimeError("NUMBA_DISABLE_JIT is set: planning would be hundreds of times slower; unset it")

P = ParamSpec("P")
R = TypeVar("R")
_ROOT = Path(__file__).parents[2]
_IMPORT = re.compile(r"^from ((?:scheduling|simulation)[\w.]*) import", re.MULTILINE)
_FORMAT = "2"
"""Raise when the decorator's options change."""


@lru_cache(maxsize=256)
def _sources(path: Path) -> frozenset[Path]:
    """Return the file and the project's files that it imports, directly or not; this one left out."""
    found: set[Path] = set()
    pending = [path]
    while pending:
        source = pending.pop()
        if source in found or source == Path(__file__) or not source.is_file():
            continue
        found.add(source)
        pending += [_ROOT / f"{name.replace('.', '/')}.py" for name in _IMPORT.findall(source.read_text("utf-8"))]
    return frozenset(found)


@lru_cache(maxsize=256)
def cache_dir(path: Path) -> Path:
    """Where the compiled kernels of a source file are kept; made when it does not exist."""
    digest = hashlib.sha256(_FORMAT.encode())
    for source in sorted(_sources(path)):
        digest.update(source.read_bytes())
    key = f"kernels-{path.stem}-{digest.hexdigest()[:16]}"
    chosen = os.environ.get("SLOS_KERNEL_CACHE")
    shipped = (Path(chosen) if chosen else path.parent / "__pycache__") / key
    if _writable(shipped):
        return shipped
    private = Path(tempfile.gettempdir()) / f"slos-{os.getuid()}" / key
    if not private.exists() and shipped.exists():
        private.parent.mkdir(mode=0o700, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix="slos-kernels-"))
        shutil.copytree(shipped, staging, dirs_exist_ok=True)
        try:
            staging.rename(private)
        except OSError:  # another process was first
            shutil.rmtree(staging, ignore_errors=True)
    if not _writable(private):
        raise RuntimeError(
            f"no place for compiled kernels: neither {shipped} nor {private} can be written; set SLOS_KERNEL_CACHE"
        )
    return private


def _writable(path: Path) -> bool:
    """Whether this user owns the folder and can write to it; another user's code must not be run."""
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=path):
            return path.stat().st_uid == os.getuid()
    except OSError:
        return False


def kernel(function: Callable[P, R]) -> Callable[P, R]:
    """Compile on first use, keep the result in cache_dir."""
    return _compiled(function, set())


def reduction(function: Callable[P, R]) -> Callable[P, R]:
    """Compile like `kernel`, for minima and sums of whole numbers: their order does not matter, nothing is NaN."""
    return _compiled(function, {"nnan", "nsz", "reassoc"})


def _compiled(function: Callable[P, R], fastmath: set[str]) -> Callable[P, R]:
    saved = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(cache_dir(Path(function.__code__.co_filename)))
    try:
        compiled = numba.njit(cache=True, error_model="numpy", nogil=True, fastmath=fastmath)(function)
        return cast("Callable[P, R]", compiled)
    finally:
        numba.config.CACHE_DIR = saved
