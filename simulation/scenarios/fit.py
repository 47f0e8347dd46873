"""Fit the distributions in fitted.json to the public files: `python -m simulation.scenarios.fit --data DIR`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

from simulation.scenarios import public_data
from simulation.scenarios.distributions import GapProcess, JointLengths, QuantileTable, burstiness, normal_scores

FITTED = Path(__file__).with_name("fitted.json")
WINDOWS = {"sharegpt": 2048, "arxiv": 4096, "humaneval": 2048, "azure-code": 8192}


def main() -> None:
    """Read the public files, write fitted.json beside this file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with the public files")
    data = parser.parse_args().data
    fitted: dict[str, object] = {}
    for name in ("azure-code", "azure-conv"):
        fitted[name] = _arrivals(public_data.azure_seconds(public_data.read(data, name)))
    r1 = public_data.read(data, "deepseek-r1")
    fitted["deepseek-r1"] = _arrivals(np.asarray(r1["arrived_at"], np.float64))
    for name, window in WINDOWS.items():
        fitted[f"{name}-lengths"] = _lengths(list(public_data.lengths(data, name, window)))
    prompt, output, thinking = r1_lengths(data)
    fitted["deepseek-r1-lengths"] = _lengths([prompt, output - thinking, thinking])
    first, calls, growth, inner, last = tool_lengths(data)
    fitted["toolbench-sessions"] = _lengths([first, calls])
    fitted["toolbench-growth"] = _lengths([growth])
    fitted["toolbench-inner-output"] = _lengths([inner])
    fitted["toolbench-last-output"] = _lengths([last])
    FITTED.write_text(json.dumps(fitted, indent=1) + "\n")


def r1_lengths(data: Path, window_tokens: int = 8192) -> tuple[npt.NDArray[np.int64], ...]:
    """Prompt, output and thinking tokens of the reasoning sample that fit the window."""
    table = public_data.read(data, "deepseek-r1")
    prompt = np.asarray(table["input_tokens"], np.int64)
    output = np.asarray(table["output_tokens"], np.int64)
    thinking = np.minimum(np.asarray(table["reason_tokens"], np.int64), output - 1)
    keep = (prompt + output <= window_tokens) & (thinking >= 1)
    return prompt[keep], output[keep], thinking[keep]


def tool_lengths(data: Path) -> tuple[npt.NDArray[np.int64], ...]:
    """First prompts and call counts per session; tool answers, inner outputs and last outputs per round."""
    sessions = public_data.read(data, "toolbench-sessions")
    rounds = public_data.read(data, "toolbench-rounds")
    name, index = rounds["id"].str.split("#", expand=True)[0], rounds["id"].str.split("#", expand=True)[1].astype(int)
    prompt = np.asarray(rounds["prompt_tokens_llama2"], np.int64)
    output = np.asarray(rounds["output_tokens_llama2"], np.int64)
    same = np.asarray(name.to_numpy()[1:] == name.to_numpy()[:-1])
    growth = (prompt[1:] - prompt[:-1] - output[:-1])[same]
    is_last = np.append(~same, True)
    assert (np.asarray(index)[1:][same] > 0).all()
    return (
        np.asarray(sessions["first_prompt_tokens_llama2"], np.int64),
        np.asarray(sessions["llm_calls"], np.int64),
        np.maximum(1, growth),
        output[~is_last],
        output[is_last],
    )


def _arrivals(times: npt.NDArray[np.float64]) -> dict[str, object]:
    gaps = np.diff(times)
    scores = normal_scores(gaps)
    cv, peak, busiest = burstiness(times)
    table = QuantileTable.of(gaps)
    rate = len(times) / float(times[-1])
    start = float(np.corrcoef(scores[1:], scores[:-1])[0, 1])
    candidates = np.unique(np.clip(np.append(np.linspace(0.0, 0.98, 50), start), 0.0, 0.98))

    def distance(correlation: float) -> float:
        process = GapProcess(table, float(correlation), rate)
        found = [burstiness(process.sample(times[-1], np.random.default_rng(seed))) for seed in range(6)]
        _, peaks, shares = np.median(np.asarray(found), axis=0)
        return float(abs(np.log(peaks / peak)) + abs(np.log(shares / busiest)))

    best = min(candidates, key=distance)
    return {
        "gaps_s": list(table.values),
        "gap_correlation": round(float(best), 4),
        "rate_per_s": round(rate, 6),
        "of_the_file": {"cv": round(cv, 3), "peak_10s": round(peak, 3), "busiest_tenth": round(busiest, 3)},
    }


def _lengths(samples: list[npt.NDArray[np.int64]]) -> dict[str, object]:
    joint = JointLengths.of(samples)
    return {
        "tables": [list(t.values) for t in joint.tables],
        "correlation": [list(row) for row in joint.correlation],
        "of_the_file": {
            "rows": len(samples[0]),
            "mean": [round(float(s.mean()), 2) for s in samples],
            "std": [round(float(s.std()), 2) for s in samples],
        },
    }


if __name__ == "__main__":
    main()
