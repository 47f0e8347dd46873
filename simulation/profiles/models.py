"""Facts of models and GPUs that profiles are computed from."""

from __future__ import annotations

from dataclasses import dataclass

GPU_HBM_BYTES = {"A100-40GB": 40 * 2**30, "A100-80GB": 80 * 2**30, "H100-80GB": 80 * 2**30, "H200-141GB": 141 * 10**9}
HBM_SHARE = 0.9
KV_ELEMENT_BYTES = 2


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Shape of a model in 16-bit weights; draft_bytes is what a draft model beside it takes."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    weight_bytes: float
    window_tokens: int
    draft_bytes: float = 0.0

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of one token over all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * KV_ELEMENT_BYTES

    def kv_tokens(self, gpu: str, gpus: int) -> int:
        """(0.9 HBM - weights) / bytes per token."""
        free = HBM_SHARE * GPU_HBM_BYTES[gpu] * gpus - self.weight_bytes - self.draft_bytes
        return int(free // self.kv_bytes_per_token)


MODELS = {
    "opt-6.7b": ModelFacts(32, 32, 32, 128, 13.3e9, 2048, draft_bytes=0.25e9),
    "opt-13b": ModelFacts(40, 40, 40, 128, 25.7e9, 2048, draft_bytes=0.25e9),
    "opt-30b": ModelFacts(48, 56, 56, 128, 59.9e9, 2048, draft_bytes=0.25e9),
    "llama-2-7b": ModelFacts(32, 32, 32, 128, 13.5e9, 4096),
    "llama-3-8b": ModelFacts(32, 32, 8, 128, 16.1e9, 8192),
    "r1-distill-qwen-1.5b": ModelFacts(28, 12, 2, 128, 3.6e9, 32768),
}
