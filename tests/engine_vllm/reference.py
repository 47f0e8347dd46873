"""The oracle: the same weights in transformers, float32."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

TOLERANCE = 0.05
"""Logits: a token that close to the top one may be chosen; batched and single runs are not bit-identical."""


class Reference:
    """Tokenizer and float32 model."""

    def __init__(self, folder: Path) -> None:
        """Load; a second or two."""
        torch.set_num_threads(1)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    def chat(self, message: str) -> list[int]:
        """Token ids of a chat with one user message."""
        encoded = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": message}], add_generation_prompt=True, return_dict=True
        )
        return list(encoded["input_ids"])

    def logits(self, prompt: list[int], output: list[int]) -> torch.Tensor:
        """Logits before each output token, shape (output, vocabulary)."""
        with torch.inference_mode():
            logits: torch.Tensor = self.model(torch.tensor([prompt + output])).logits
        return logits[0, len(prompt) - 1 : -1].clone()

    def gap(self, prompt: list[int], output: list[int]) -> float:
        """How far below the top logit the worst output token lies when the output is teacher-forced; 0 is exact."""
        logits = self.logits(prompt, output)
        chosen = logits[torch.arange(len(output)), torch.tensor(output)]
        return float((logits.max(dim=-1).values - chosen).max())
