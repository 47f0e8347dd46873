"""What an emulated engine keeps of a request and of a step under way."""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.emulated.output import OutputScript, StopText
from engine.protocol import EngineRequest
from scheduling.time_model import BatchShape


@dataclass(slots=True)
class Live:
    """A request in the engine.

    tokens: prompt and output so far. hashes: one per full block of tokens, as far as they were needed. named_blocks:
    how many of its blocks the prefix cache knows.
    """

    request: EngineRequest
    script: OutputScript
    text: StopText
    tokens: list[int]
    max_tokens: int
    thinking: bool
    blocks: list[int] = field(default_factory=list)
    hashes: list[int] = field(default_factory=list)
    named_blocks: int = 0
    cached_tokens: int = 0
    accepted_drafts: int = 0
    drafts: int = 0
    kv_recomputed: bool = False

    @property
    def request_id(self) -> str:
        """Name of the request."""
        return self.request.request_id

    @property
    def generated(self) -> int:
        """Output tokens so far, from the original prompt on."""
        return len(self.tokens) - self.request.prompt_tokens


@dataclass(slots=True)
class Batch:
    """One step under way: requests with the tokens that each computes."""

    decodes: list[tuple[Live, int]] = field(default_factory=list)
    prefills: list[tuple[Live, int]] = field(default_factory=list)
    duration_s: float = 0.0
    predicted_s: float = 0.0
    tokens: int = 0
    shape: BatchShape | None = None
    touched: dict[str, Live] = field(default_factory=dict)
    relegated: set[str] = field(default_factory=set)

    @property
    def requests(self) -> int:
        """Requests in the batch."""
        return len(self.decodes) + len(self.prefills)

    def holds(self, live: Live) -> bool:
        """Whether a request is in the batch already, so that its blocks may not be taken."""
        return any(other is live for other, _ in (*self.decodes, *self.prefills))
