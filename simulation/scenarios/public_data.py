"""Public workload files that a user keeps in a folder of their own, read by checksum; never part of this repository."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd


class DataError(Exception):
    """A public file is missing or is not the one the scenarios were built for; the text says what to do."""


@dataclass(frozen=True, slots=True)
class PublicFile:
    """Where a file lies in the data folder, what it must hash to, and where it comes from."""

    path: str
    sha256: str
    origin: str


FILES = {
    "azure-code": PublicFile(
        "azure2023/AzureLLMInferenceTrace_code.csv",
        "54e9a6d2a4bd06ba1e060304b900abbc74cbea53de96506e60fe5bb4f2277fb6",
        "Azure LLM inference trace 2023, github.com/Azure/AzurePublicDataset, CC-BY-4.0",
    ),
    "azure-conv": PublicFile(
        "azure2023/AzureLLMInferenceTrace_conv.csv",
        "2f1e5b666d4e3055fdbba98598ce2ec307767b9064e03e2fa46676dbcc7d0bf8",
        "Azure LLM inference trace 2023, github.com/Azure/AzurePublicDataset, CC-BY-4.0",
    ),
    "sharegpt": PublicFile(
        "sharegpt_lengths/sharegpt_8k_filtered_stats_llama2_tokenizer.csv",
        "6d6c296302a853e2669a674a96f269283e60c57e60363bd450588a1066919f9f",
        "github.com/microsoft/sarathi-serve, branch niyama_asplos2026, Apache-2.0",
    ),
    "arxiv": PublicFile(
        "arxiv_lengths/arxiv_summarization_stats_llama2_tokenizer_filtered_v2.csv",
        "9d3580538d915ca75e4aaaa54590b42dbb17abc6d74c8913310cf07c232adcdc",
        "github.com/microsoft/vidur, MIT",
    ),
    "humaneval": PublicFile(
        "derived/humaneval_token_lengths.csv",
        "fdc804a0c0303e1389f0c3426094feedc389852682cfc05d09afc7fca89b825f",
        "token counts of github.com/openai/human-eval (MIT), Llama-2 tokenizer",
    ),
    "toolbench-sessions": PublicFile(
        "derived/toolbench_sessions.csv",
        "5cb7bc32d307285bb61e578b561aac2b56f3d7f9418c30bf5c79e0bacdf2ea7e",
        "call counts and first prompts of github.com/OpenBMB/ToolBench (Apache-2.0), Llama-2 tokenizer",
    ),
    "toolbench-rounds": PublicFile(
        "derived/toolbench_token_lengths.csv",
        "24e7a5263cb9ca663ee8e6f5a99afd3d591ad2bf0a2910c1d150c4181839278c",
        "lengths of single calls of github.com/OpenBMB/ToolBench (Apache-2.0), Llama-2 tokenizer",
    ),
    "deepseek-r1": PublicFile(
        "derived/servegen_deepseek_r1_1h_resampled.csv",
        "d356dc6c046dc101d0db17f1f9a4402be5974667987054d6f59068c15571da97",
        "drawn from the DeepSeek-R1 distributions of github.com/alibaba/ServeGen (Apache-2.0)",
    ),
}


def available(data_dir: Path | None, name: str) -> bool:
    """Whether the user's folder holds this file."""
    return data_dir is not None and (data_dir / FILES[name].path).is_file()


@lru_cache(maxsize=32)
def read(data_dir: Path, name: str) -> pd.DataFrame:
    """The file as a table; DataError when it is missing or differs from the one expected."""
    public = FILES[name]
    path = data_dir / public.path
    if not path.is_file():
        raise DataError(f"{path} is missing: get it from {public.origin}, or leave --data out to use fitted numbers")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != public.sha256:
        raise DataError(
            f"{path} has SHA-256 {found}, expected {public.sha256}: it is not the file the scenarios were built for"
            f" ({public.origin})"
        )
    return pd.read_csv(path)


def azure_seconds(table: pd.DataFrame) -> npt.NDArray[np.float64]:
    """Arrival times of an Azure trace in seconds from its first request."""
    stamps = pd.to_datetime(table["TIMESTAMP"])
    return np.asarray((stamps - stamps.iloc[0]).dt.total_seconds(), np.float64)


def lengths(data_dir: Path, name: str, window_tokens: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Prompt and output tokens of every row that a model window holds."""
    table = read(data_dir, name)
    if name in ("sharegpt", "arxiv"):
        prompt, output = table["num_prefill_tokens"], table["num_decode_tokens"]
    elif name in ("azure-code", "azure-conv"):
        prompt, output = table["ContextTokens"], table["GeneratedTokens"]
    else:
        prompt, output = table["prompt_tokens_llama2"], table["output_tokens_llama2"]
    p, o = np.asarray(prompt, np.int64), np.asarray(output, np.int64)
    keep = (p >= 1) & (o >= 1) & (p + o <= window_tokens)
    if name == "arxiv":
        keep &= (p >= 256) & (o <= 1024)
    return p[keep], o[keep]
