"""How long an engine step takes (ALGORITHMS section 6): prediction, inverse, fit.

CONTRACT (the brain's owner fills this file in; the names below are fixed):

class BatchShape(NamedTuple):  new_tokens, requests, decode_kv_tokens, prefill_attention, spec_steps   # all float
    new_tokens: tokens computed in the step (prefill chunks + 1 per decode + drafts)
    requests: requests in the batch
    decode_kv_tokens: sum over decodes of KV tokens read
    prefill_attention: sum over chunks of chunk * (context_before + chunk / 2)
    spec_steps: drafted tokens per request, largest in the batch

@dataclass(frozen=True, slots=True)
class TimeModel:
    lines: tuple[tuple[float, ...], ...]   # roofline lines; each (constant, k_new_tokens, k_requests, k_decode_kv, k_prefill_attention, k_spec_steps), seconds
    margin: float = 1.0                    # safety factor on predictions, >= 1
    source: str = ""                       # measured | computed | assumed, and where from
    quality: FitQuality | None = None      # r2, p50/p99 relative error on held-out batches, n
    def duration_s(self, shape: BatchShape) -> float            # with margin
    def max_new_tokens(self, time_s, ...) -> int                 # the inverse: largest batch for a time
    def zero_load_prefill_s(self, prompt_tokens, max_batch_tokens) -> float   # whole prompt alone, in chunks
    def to_json(self) -> str / from_json(text) -> TimeModel
    def with_margin(self, margin) -> TimeModel
def fit(samples: Sequence[tuple[BatchShape, float]]) -> TimeModel
"""
