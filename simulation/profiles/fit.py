"""Write the profiles of this folder: `python -m simulation.profiles.fit --data DIR` (public timing tables)."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

from scheduling.fit import fit
from scheduling.time_model import TimeModel
from scheduling.types import EngineLimits
from simulation.profiles import kernels
from simulation.profiles.models import MODELS
from simulation.profiles.profile import FOLDER, Link, Profile, Provenance

MAX_BATCH_TOKENS, MAX_BATCH_REQUESTS, BLOCK = 4096, 512, 16
MAX_SPEC_TOKENS, ACCEPTANCE = 5, 0.7
LINK = Link(latency_s=0.001, bytes_per_s=25e9)
PAPER = "coefficients published by the authors of SLOs-Serve (arXiv 2504.08784)"

# (constant, per new token, per speculation step), seconds.
PAPER_LINES = {
    "a100-opt-7b": ("opt-6.7b", 1, [(0.0248, 6.878e-5, 1.25e-6), (0.00303, 7.523e-5, 3.465e-3)]),
    "a100-opt-13b": ("opt-13b", 2, [(0.0317, 7.213e-5, 3.341e-3)]),
    "a100-opt-30b": ("opt-30b", 4, [(0.0379, 9.314e-5, 2.797e-3)]),
    "a100-toolllama-7b": ("llama-2-7b", 1, [(0.0275, 6.572e-5, 0.0)]),
    "a100-r1-qwen-1.5b": ("r1-distill-qwen-1.5b", 1, [(0.0180, 2.916e-4, 0.0)]),
    "h100-opt-13b": ("opt-13b", 2, [(0.0274, 4.177e-5, 3.341e-3)]),
}
AIC_VERSIONS = {"a100_sxm": "0.14.0", "h100_sxm": "0.24.0", "h200_sxm": "0.14.0"}
ENGINE_OVER_KERNELS = 1.22
MIXED_SPEC_S = 3.341e-3


def main() -> None:
    """Read the tables, write one JSON file per profile."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with the public timing tables")
    data = parser.parse_args().data
    profiles = [_paper(name) for name in PAPER_LINES]
    profiles.append(_distserve(data))
    profiles.append(_vidur(data, "a100", "llama-2-7b"))
    profiles.append(_vidur(data, "h100", "llama-2-7b"))
    profiles.append(_vidur(data, "a100", "llama-3-8b"))
    profiles.append(_aiconfigurator(data, "h200_sxm", "llama-2-7b"))
    for profile in profiles:
        (FOLDER / f"{profile.name}.json").write_text(profile.to_json())


def _profile(
    name: str, description: str, model: str, gpu: str, gpus: int, time_model: TimeModel, timing: Provenance
) -> Profile:
    facts = MODELS[model]
    drafter = any(line[5] > 0 for line in time_model.lines)
    provenance = {
        "time_model": timing,
        "kv_tokens": Provenance("computed", "(0.9 HBM - weights) / KV bytes per token", "10 %: activations"),
        "link": Provenance("assumed", "25 GB/s and 1 ms between replicas", "factor 2"),
        "max_batch_tokens": Provenance("assumed", "engine setting", "none: chosen"),
    }
    if drafter:
        provenance["spec_acceptance"] = Provenance("assumed", "125M draft model on chat text", "0.1 either way")
    return Profile(
        name=name,
        description=description,
        model=model,
        gpu=gpu,
        gpus_per_replica=gpus,
        time_model=replace(time_model, source=f"{timing.kind}: {timing.source}"),
        limits=EngineLimits(
            MAX_BATCH_TOKENS,
            MAX_BATCH_REQUESTS,
            BLOCK,
            facts.kv_tokens(gpu, gpus) // BLOCK,
            max(facts.window_tokens, 8192),
            MAX_SPEC_TOKENS if drafter else 1,
        ),
        kv_bytes_per_token=facts.kv_bytes_per_token,
        link=LINK,
        spec_acceptance=ACCEPTANCE if drafter else 0.0,
        provenance=provenance,
    )


def _paper(name: str) -> Profile:
    model, gpus, lines = PAPER_LINES[name]
    time_model = TimeModel(tuple((c, k_n, 0.0, 0.0, 0.0, k_s) for c, k_n, k_s in lines))
    gpu = "H100-80GB" if name.startswith("h100") else "A100-40GB"
    timing = Provenance("measured", PAPER, "R^2 0.82-0.93; no term for context length")
    return _profile(name, f"{model}, tensor parallel {gpus}, as in the paper", model, gpu, gpus, time_model, timing)


def _distserve(data: Path) -> Profile:
    """DistServe's fit of vLLM on an A100-80GB, OPT-13B: the one public engine measurement with KV terms."""
    folder = data / "distserve/profile_data"
    table = json.loads((folder / "profiler-a100-80g.vllm.json").read_text())["facebook/opt-13b"]["1"]
    rows = (folder / "max_num_tokens.csv").read_text().split()
    kv_tokens = int(next(r for r in rows if r.startswith("facebook/opt-13b,1,1,")).split(",")[-1])
    per_token, per_square = table["prefill"][1] / 1e3, table["prefill"][2] / 1e3
    lines = []
    for branch in ("decoding_smallbs", "decoding_largebs"):
        constant, context, batch = (v / 1e3 for v in table[branch])
        # A decode counts as one new token and as one request: together they must cost `batch`.
        lines.append((constant, per_token, batch - per_token, context, 2 * per_square, MIXED_SPEC_S))
    timing = Provenance(
        "measured",
        "DistServe profile data, vLLM of early 2024, OPT-13B TP1: prefill and decode iterations;"
        " their sum in a mixed batch is assumed, and so is the draft step (from OPT-13B TP2)",
        "measured parts 5 %, mixed batches 10-20 %",
    )
    profile = _profile(
        "a100-opt-13b-kv",
        "OPT-13B on one GPU with KV terms, DistServe's measurement of vLLM",
        "opt-13b",
        "A100-80GB",
        1,
        TimeModel(tuple(lines)),
        timing,
    )
    provenance = dict(profile.provenance)
    provenance["kv_tokens"] = Provenance("measured", "DistServe max_num_tokens.csv", "none known")
    return replace(profile, limits=replace(profile.limits, total_blocks=kv_tokens // BLOCK), provenance=provenance)


def _vidur(data: Path, gpu: str, model: str) -> Profile:
    facts = MODELS[model]
    system = f"{gpu}_sxm"
    samples = kernels.composed_batches(
        kernels.vidur_linear(data, gpu, model, facts),
        kernels.aic_attention(data, system, AIC_VERSIONS[system], facts),
        kernels.vidur_cpu_ms(data, "Llama-2-7b"),
        attention_floor_ms=0.012 * facts.layers,
    )
    timing = Provenance(
        "computed",
        "sum of vidur's measured kernels and CPU overheads and aiconfigurator's measured attention,"
        " composed over a grid of batches and fitted",
        "15 %; steps of tile sizes are smoothed",
    )
    return _profile(
        f"{gpu}-{model}",
        f"{model} on one GPU, from kernel tables",
        model,
        f"{gpu.upper()}-80GB",
        1,
        fit(samples),
        timing,
    )


def _aiconfigurator(data: Path, system: str, model: str) -> Profile:
    facts = MODELS[model]
    linear = kernels.aic_linear(data, system, model)
    attention = kernels.aic_attention(data, system, AIC_VERSIONS[system], facts)
    samples = kernels.composed_batches(
        lambda n: ENGINE_OVER_KERNELS * linear(n),
        (ENGINE_OVER_KERNELS * attention[0], ENGINE_OVER_KERNELS * attention[1]),
        kernels.vidur_cpu_ms(data, "Llama-2-7b"),
        attention_floor_ms=0.012 * facts.layers,
    )
    timing = Provenance(
        "computed",
        f"aiconfigurator's gemm and attention tables times {ENGINE_OVER_KERNELS}, the factor between its kernels and"
        " a measured engine on A100",
        "30 %: the same factor was 1.69 for an older engine",
    )
    return _profile(
        "h200-llama-2-7b", "Llama-2-7B on one H200, from kernel tables", model, "H200-141GB", 1, fit(samples), timing
    )


if __name__ == "__main__":
    main()
