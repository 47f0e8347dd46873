"""A picture of one plan: what the planned batches supply and what the deadlines demand, over time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cli.errors import CliError, Exit


def draw(explained: dict[str, Any], title: str, path: Path) -> None:
    """Draw the lines of an explained plan (scheduling.types.AdmissionDecision.explain) into a PNG file."""
    lines = (explained.get("plan") or {}).get("lines")
    if not lines:
        raise CliError("This plan has no lines to draw: its policy computes no budget over time.", Exit.REFUSED)
    try:
        import matplotlib as mpl
    except ModuleNotFoundError as error:
        raise CliError("Plots need matplotlib: install slos-serve[loadtest].") from error
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    milliseconds = [1000 * time_s for time_s in lines["time_s"]]
    axes.step(milliseconds, lines["budget_tokens"], where="post", label="budget: tokens the planned batches supply")
    axes.step(milliseconds, lines["demand_tokens"], where="post", label="demand: tokens that deadlines require")
    axes.set_xlabel("time from the decision, ms")
    axes.set_ylabel("tokens, cumulative")
    axes.set_title(title, loc="left", fontsize=9, wrap=True)
    axes.legend()
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise CliError(f"Cannot write {path}: {error.strerror}.") from error
    finally:
        plt.close(figure)
