"""Continue a request that another engine began: its prior output is prompt to vLLM, and output to the client.

vLLM counts penalties, stop strings and grammars over what it generated itself. Here they count over the original
output. max_tokens, min_tokens and the seed are handled where the sampling parameters are made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

if TYPE_CHECKING:
    from vllm.sampling_params import SamplingParams

PENALTIES_ARG = "slos_penalties"
"""Key in extra_args: {"prior": token ids, "presence": x, "frequency": y, "repetition": z}."""


class PriorOutputPenalties(AdapterLogitsProcessor):
    """Presence, frequency and repetition penalties of requests that were resumed, over prior and new output.

    vLLM's own penalties are switched off for these requests; formulas and order are vLLM's.
    """

    def is_argmax_invariant(self) -> bool:
        """Penalties change which token is greatest."""
        return False

    def new_req_logits_processor(
        self, params: SamplingParams
    ) -> Callable[[list[int], list[int], torch.Tensor], torch.Tensor] | None:
        """Penalties of one request, or None for a request that was not resumed."""
        settings: dict[str, Any] | None = (params.extra_args or {}).get(PENALTIES_ARG)
        if settings is None:
            return None
        prior = list(settings["prior"])
        presence, frequency = float(settings["presence"]), float(settings["frequency"])
        repetition = float(settings["repetition"])

        def penalise(prompt_ids: list[int], output_ids: list[int], logits: torch.Tensor) -> torch.Tensor:
            output = torch.tensor([t for t in (*prior, *output_ids) if t >= 0], device=logits.device)
            tokens, counts = torch.unique(output, return_counts=True)
            if repetition != 1.0:
                seen = torch.unique(torch.cat([torch.tensor(prompt_ids, device=logits.device), tokens]))
                values = logits[seen]
                logits[seen] = torch.where(values > 0, values / repetition, values * repetition)
            logits[tokens] -= frequency * counts.to(logits.dtype) + presence
            return logits

        return penalise


def seed_detokenizer(detokenizer: Any, prior: list[int], text_chars: int) -> None:
    """Show the prior output to a fresh detokenizer, so that a stop string may begin in it.

    text_chars: characters of output that the client has; what follows them is given out next.
    """
    if not hasattr(detokenizer, "decode_next"):
        return
    for token in prior:
        detokenizer.token_ids.append(token)
        detokenizer.output_text += detokenizer.decode_next(token)
    detokenizer._last_output_text_offset = min(text_chars, len(detokenizer.output_text))
    # min_tokens counts new output in vLLM's core and all output here.
    detokenizer.min_tokens += len(prior) if detokenizer.min_tokens else 0
