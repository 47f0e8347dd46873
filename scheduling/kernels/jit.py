"""The decorator of all kernels, and where compiled code is kept.

`python -m scheduling.compile` fills the cache at install, so that no first request pays for compilation. The cache
lies in __pycache__ beside the source, keyed by the text of the kernels; where that folder cannot be written (a
read-only install) it is copied to a private folder under the system's temporary directory, because numba insists on
writing where it reads. SLOS_KERNEL_CACHE names another folder.
"""

from __future__ import annotations

import hashlib
import os
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
_HERE = Path(__file__).parent


def source_key(folder: Path = _HERE) -> str:
    """Key of the kernels' text: numba itself does not notice a change in a kernel that another one calls."""
    digest = hashlib.sha256()
    for source in dict.fromkeys((_HERE, folder)):
        for path in sorted(source.glob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


@lru_cache(maxsize=16)
def cache_dir(folder: Path = _HERE) -> Path:
    """Where the compiled kernels of a source folder are kept; made when it does not exist."""
    key = f"kernels-{source_key(folder)}"
    chosen = os.environ.get("SLOS_KERNEL_CACHE")
    shipped = (Path(chosen) if chosen else folder / "__pycache__") / key
    if _writable(shipped):
        return shipped
    private = Path(tempfile.gettempdir()) / f"slos-{os.getuid()}-{key}"
    if not private.exists() and shipped.exists():
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
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=path):
            return path.stat().st_uid == os.getuid() or os.access(path, os.W_OK)
    except OSError:
        return False


def kernel(function: Callable[P, R]) -> Callable[P, R]:
    """Compile on first use, keep the result in cache_dir."""
    saved = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(cache_dir(Path(function.__code__.co_filename).parent))
    try:
        return cast("Callable[P, R]", numba.njit(cache=True, error_model="numpy", nogil=True)(function))
    finally:
        numba.config.CACHE_DIR = saved
