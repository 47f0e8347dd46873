"""Batch times composed from published kernel tables (vidur, aiconfigurator), for profiles nobody measured whole.

A step is: linear layers for its new tokens + attention of its decodes + attention of its chunks + CPU work per
iteration. Tables are per layer (vidur) or per iteration (aiconfigurator's linear sums), in milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from scheduling.time_model import BatchShape
from simulation.profiles.models import ModelFacts

FloatArray = npt.NDArray[np.float64]
Linear = Callable[[float], float]
VIDUR_LAYER = (
    "input_layernorm", "attn_pre_proj", "attn_rope", "attn_post_proj", "post_attention_layernorm",
    "mlp_up_proj", "mlp_act", "mlp_down_proj", "add", "add",
)  # fmt: skip


def vidur_linear(data: Path, gpu: str, model: str, facts: ModelFacts) -> Linear:
    """Milliseconds of all non-attention kernels of an iteration over n tokens, one GPU."""
    table = pd.read_csv(data / f"vidur/compute/{gpu}/{model}.mlp.csv")
    table = table[table["num_tensor_parallel_workers"] == 1].sort_values("num_tokens")
    layer = sum(table[f"time_stats.{kernel}.median"] for kernel in VIDUR_LAYER)
    total = layer * facts.layers + table["time_stats.emb.median"]
    return _interpolated(np.asarray(table["num_tokens"], float), np.asarray(total, float))


def aic_linear(data: Path, system: str, model: str) -> Linear:
    """The same from aiconfigurator's gemm tables."""
    table = pd.read_csv(data / "derived/aic_linear_iteration_ms.csv")
    table = table[(table["system"] == system) & (table["model"] == model)].sort_values("num_tokens")
    return _interpolated(np.asarray(table["num_tokens"], float), np.asarray(table["linear_ms"], float))


def vidur_cpu_ms(data: Path, model: str) -> tuple[float, float]:
    """CPU milliseconds per iteration: constant and per request (scheduling, inputs, sampling, outputs)."""
    table = pd.read_csv(data / "vidur/a100.cpu_overheads.csv")
    table = table[table["model_name"].str.contains(model) & (table["tensor_parallel_degree"] == 1)]
    columns = ("schedule", "sampler_e2e", "prepare_inputs_e2e", "process_model_outputs")
    total = sum(table[f"{c}_median"] for c in columns)
    slope, constant = np.polyfit(np.asarray(table["batch_size"], float), np.asarray(total, float), 1)
    return float(constant), float(slope)


def aic_attention(data: Path, system: str, version: str, facts: ModelFacts) -> tuple[float, float]:
    """Milliseconds over all layers per KV token read by decodes, and per chunk * (context + chunk / 2) of prefills.

    Decode tables end at 8 KV heads: more heads read proportionally more.
    """
    folder = data / f"aiconfigurator/{system}/attention/vllm/{version}"
    decode = _plain(pd.read_parquet(folder / "generation_attention_perf.parquet"))
    kv_heads = min(facts.kv_heads, 8)
    heads = 8 if facts.kv_heads == facts.heads else facts.heads
    rows = decode[(decode["num_heads"] == heads) & (decode["num_key_value_heads"] == kv_heads)]
    tokens = np.asarray(rows["batch_size"] * (rows["step"] + 1), float)
    busy = (
        (tokens >= 8192) & (tokens <= 262144) & (np.asarray(rows["step"]) >= 127) & (np.asarray(rows["step"]) <= 8191)
    )
    per_kv = float(np.median(np.asarray(rows["latency"], float)[busy] / tokens[busy])) * facts.kv_heads / kv_heads
    prefill = _plain(pd.read_parquet(folder / "context_attention_perf.parquet"))
    rows = prefill[
        (prefill["num_heads"] == facts.heads)
        & (prefill["num_key_value_heads"] == facts.kv_heads)
        & (prefill["batch_size"] == 1)
        & (prefill["isl"] >= 1024)
        & (prefill["isl"] <= 8192)
    ]
    length = np.asarray(rows["isl"], float)
    per_product = float(np.median(np.asarray(rows["latency"], float) / (length * length / 2)))
    return per_kv * facts.layers, per_product * facts.layers


def composed_batches(
    linear: Linear, attention: tuple[float, float], cpu_ms: tuple[float, float], attention_floor_ms: float
) -> list[tuple[BatchShape, float]]:
    """Decode-only, prefill-only and mixed batches with their composed times in seconds, in a fixed shuffled order."""
    samples = []
    for decodes in (0, 1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256):
        for context in (128, 512, 1024, 2048, 4096):
            for chunk in (0, 64, 128, 256, 512, 1024, 2048, 4096):
                for cached in (0, 1024, 4096):
                    if decodes + chunk == 0 or (chunk == 0 and cached) or (decodes == 0 and context > 128):
                        continue
                    if decodes + chunk > 4096:
                        continue
                    shape = BatchShape(
                        float(decodes + chunk),
                        float(decodes + (chunk > 0)),
                        float(decodes * context),
                        chunk * (cached + chunk / 2.0),
                    )
                    ms = linear(shape.new_tokens) + attention_floor_ms
                    ms += attention[0] * shape.decode_kv_tokens + attention[1] * shape.prefill_attention
                    ms += cpu_ms[0] + cpu_ms[1] * shape.requests
                    samples.append((shape, ms / 1000.0))
    order = np.random.default_rng(0).permutation(len(samples))
    return [samples[i] for i in order]


def _plain(table: pd.DataFrame) -> pd.DataFrame:
    keep = (table["kv_cache_dtype"] == "bfloat16") & (table["head_dim"] == 128)
    if "window_size" in table:
        keep &= (table["window_size"] == 0) & table["kernel_source"].str.contains("fa3")
    return table[keep]


def _interpolated(tokens: FloatArray, milliseconds: FloatArray) -> Linear:
    unique, index = np.unique(tokens, return_index=True)
    values = milliseconds[index]
    return lambda n: float(np.interp(n, unique, values))
