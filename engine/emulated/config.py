"""Settings of the emulated engine."""

from __future__ import annotations

from dataclasses import dataclass

from engine.kv.config import KvConfig
from scheduling.registry import DEFAULT_POLICY
from scheduling.time_model import TimeModel
from scheduling.types import EngineLimits

A100_7B = TimeModel(
    ((0.0275, 6.572e-5, 0.0, 0.0, 0.0, 0.0),), source="computed: the paper's fit of Llama-2-7B on one A100 40 GB"
)
"""The default: a step takes 27.5 ms and 66 microseconds per token."""


@dataclass(frozen=True, slots=True)
class EmulatedConfig:
    """What is emulated; lengths in tokens.

    time_model: how long steps take. time_noise: standard deviation of a step's relative error. time_scale multiplies
    every duration, so that tests need not wait. accept_rate: chance that one drafted token is right.
    output_mean and output_sigma: log-normal lengths after which the end-of-sequence token comes; thinking_mean the
    same for the thinking stage. queue_limit: requests held at most, running or waiting. kv_exchange: hand KV over to
    and from other engines, with blocks of kv_block_bytes bytes, under the name worker_id.
    """

    model: str = "emulated"
    hardware: str = "emulated-a100-40gb"
    time_model: TimeModel = A100_7B
    time_noise: float = 0.0
    time_scale: float = 1.0
    kv_blocks: int = 2048
    block_size: int = 16
    max_model_len: int = 8192
    max_batch_tokens: int = 2048
    max_batch_requests: int = 256
    max_spec_tokens: int = 1
    accept_rate: float = 0.7
    prefix_caching: bool = True
    policy: str = DEFAULT_POLICY
    seed: int = 0
    vocab_size: int = 32_000
    eos_token_id: int = 2
    output_mean: float = 200.0
    output_sigma: float = 0.7
    thinking_mean: float = 150.0
    queue_limit: int = 4096
    worker_id: str = "emulated"
    kv_exchange: KvConfig | None = None
    kv_block_bytes: int = 256

    def __post_init__(self) -> None:
        """Check what would otherwise fail late; ValueError names the setting."""
        for name in ("kv_blocks", "block_size", "max_model_len", "max_batch_tokens", "max_batch_requests"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.max_spec_tokens < 1:
            raise ValueError(f"max_spec_tokens counts the token itself and must be at least 1: {self.max_spec_tokens}")
        if not 0.0 <= self.accept_rate < 1.0:
            raise ValueError(f"accept_rate must lie in [0, 1), not {self.accept_rate}")
        if self.time_noise < 0 or self.time_scale <= 0:
            raise ValueError("time_noise must not be negative and time_scale must be positive")
        if self.vocab_size < 16:
            raise ValueError(f"vocab_size must be at least 16, not {self.vocab_size}")
        if self.kv_block_bytes < 16 or self.kv_block_bytes % 16:
            raise ValueError(f"kv_block_bytes must be a multiple of 16, not {self.kv_block_bytes}")
        if self.output_mean < 1 or self.thinking_mean < 1:
            raise ValueError("output_mean and thinking_mean must be at least 1 token")

    @property
    def true_time_model(self) -> TimeModel:
        """What steps really take here, noise aside."""
        return self.time_model.with_margin(1.0).scaled(self.time_scale)

    @property
    def limits(self) -> EngineLimits:
        """The same facts as planning wants them."""
        return EngineLimits(
            max_batch_tokens=self.max_batch_tokens,
            max_batch_requests=self.max_batch_requests,
            block_size=self.block_size,
            total_blocks=self.kv_blocks,
            max_model_len=self.max_model_len,
            max_spec_tokens=self.max_spec_tokens,
        )
