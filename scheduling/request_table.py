"""The resident requests of one replica, as arrays.

One RequestTable per engine: the step scheduler inside vLLM keeps one, the controller keeps a mirror per replica, the
simulator keeps one per simulated replica; the same planning code reads all three. The columns are rows of three
two-dimensional arrays (`ints`, `floats`, `flags`), so that a compiled kernel takes the whole table as three arguments.
Row numbers are the module constants below.
"""

from __future__ import annotations

import heapq

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

PREFILL_REMAINING, CONTEXT, PROMPT, GENERATED, REMAINING_OUTPUT = 0, 1, 2, 3, 4
MAX_REMAINING_OUTPUT, KV_BLOCKS, PREEMPTIONS, SEQUENCE = 5, 6, 7, 8
INT_ROWS = 9
PREFILL_DEADLINE, NEXT_DEADLINE, TPOT, ANSWER_TPOT, VALUE, ARRIVAL, ACCEPT_RATE = 0, 1, 2, 3, 4, 5, 6
DRAFT_SHARE = 7
FLOAT_ROWS = 8
ACTIVE, STANDARD, HOPEFUL, HAS_DRAFTS = 0, 1, 2, 3
FLAG_ROWS = 4


class RequestTable:
    """Columns indexed by slot; a slot stays with its request from add to remove.

    Columns (tokens and blocks are int64, times are float64 seconds):
      active; standard (False: best effort); hopeful: without a promise, but in time so far: served by its deadlines
      where that costs no promise; has_drafts: there is something to verify in its next step
      prefill_remaining: tokens to compute before the next output token appears, 0 while decoding
      context: tokens whose KV is resident; while decoding, prompt + generated - 1
      prompt_tokens, generated: lengths of the original prompt and of the output so far
      prefill_deadline_s: when the first token is due; next_deadline_s: when the next token after it is due
      tpot_s: TPOT in force; answer_tpot_s: TPOT after thinking ends (equal to tpot_s without thinking)
      remaining_output: estimate of output tokens still to come, >= 1; max_remaining_output: its bound by max_tokens
      value: worth of the promise; arrival_s; kv_blocks; accept_rate: chance that a drafted token is accepted, 0 = do
      not speculate; draft_share: share of its steps that will have drafts; preemptions; sequence: order of arrival in
      this table
    """

    def __init__(self, capacity: int = 256) -> None:
        """Start with room for `capacity` requests; the table grows by itself."""
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1, not {capacity}")
        self._allocate(capacity)
        self._slots: dict[str, int] = {}
        self._ids: list[str] = [""] * capacity
        self._free: list[int] = []
        self._used = 0
        self._next_sequence = 0

    def _allocate(self, capacity: int) -> None:
        self.ints: IntArray = np.zeros((INT_ROWS, capacity), dtype=np.int64)
        self.floats: FloatArray = np.zeros((FLOAT_ROWS, capacity), dtype=np.float64)
        self.flags: BoolArray = np.zeros((FLAG_ROWS, capacity), dtype=np.bool_)
        self._bind()

    def _bind(self) -> None:
        ints, floats, flags = self.ints, self.floats, self.flags
        self.active: BoolArray = flags[ACTIVE]
        self.standard: BoolArray = flags[STANDARD]
        self.hopeful: BoolArray = flags[HOPEFUL]
        self.has_drafts: BoolArray = flags[HAS_DRAFTS]
        self.prefill_remaining: IntArray = ints[PREFILL_REMAINING]
        self.context: IntArray = ints[CONTEXT]
        self.prompt_tokens: IntArray = ints[PROMPT]
        self.generated: IntArray = ints[GENERATED]
        self.remaining_output: IntArray = ints[REMAINING_OUTPUT]
        self.max_remaining_output: IntArray = ints[MAX_REMAINING_OUTPUT]
        self.kv_blocks: IntArray = ints[KV_BLOCKS]
        self.preemptions: IntArray = ints[PREEMPTIONS]
        self.sequence: IntArray = ints[SEQUENCE]
        self.prefill_deadline_s: FloatArray = floats[PREFILL_DEADLINE]
        self.next_deadline_s: FloatArray = floats[NEXT_DEADLINE]
        self.tpot_s: FloatArray = floats[TPOT]
        self.answer_tpot_s: FloatArray = floats[ANSWER_TPOT]
        self.value: FloatArray = floats[VALUE]
        self.arrival_s: FloatArray = floats[ARRIVAL]
        self.accept_rate: FloatArray = floats[ACCEPT_RATE]
        self.draft_share: FloatArray = floats[DRAFT_SHARE]

    @property
    def high_water(self) -> int:
        """One more than the largest slot that was ever in use: kernels scan slots below it."""
        return self._used

    def __len__(self) -> int:
        """Resident requests."""
        return len(self._slots)

    def __contains__(self, request_id: object) -> bool:
        """Whether the request is resident."""
        return request_id in self._slots

    def add(
        self,
        request_id: str,
        *,
        prompt_tokens: int,
        prefill_deadline_s: float,
        tpot_s: float,
        standard: bool = True,
        prefill_remaining: int | None = None,
        context: int = 0,
        generated: int = 0,
        next_deadline_s: float | None = None,
        answer_tpot_s: float | None = None,
        remaining_output: int = 256,
        max_remaining_output: int | None = None,
        value: float = 1.0,
        arrival_s: float = 0.0,
        kv_blocks: int = 0,
        accept_rate: float = 0.0,
        draft_share: float = 1.0,
        preemptions: int = 0,
        hopeful: bool = False,
    ) -> int:
        """Add a request and return its slot; ValueError when the id is present.

        prefill_remaining defaults to what is not resident: prompt + generated - context (0 for a request that
        decodes: its last token's KV comes with its next step). next_deadline_s defaults to
        one TPOT after the prefill deadline, max_remaining_output to remaining_output.
        """
        if request_id in self._slots:
            raise ValueError(f"request {request_id!r} is in the table already")
        if self._free:
            slot = heapq.heappop(self._free)
        else:
            slot = self._used
            if slot == self.ints.shape[1]:
                self._grow()
            self._used += 1
        if prefill_remaining is None:
            missing = prompt_tokens + generated - context
            prefill_remaining = 0 if generated > 0 and missing <= 1 else max(missing, 0)
        if max_remaining_output is None:
            max_remaining_output = remaining_output
        self.ints[:, slot] = (
            prefill_remaining,
            context,
            prompt_tokens,
            generated,
            max(remaining_output, 1),
            max(max_remaining_output, 1),
            kv_blocks,
            preemptions,
            self._next_sequence,
        )
        self.floats[:, slot] = (
            prefill_deadline_s,
            prefill_deadline_s + tpot_s if next_deadline_s is None else next_deadline_s,
            tpot_s,
            tpot_s if answer_tpot_s is None else answer_tpot_s,
            value,
            arrival_s,
            accept_rate,
            draft_share,
        )
        self.active[slot] = True
        self.standard[slot] = standard
        self.hopeful[slot] = hopeful
        self.has_drafts[slot] = True
        self._slots[request_id] = slot
        self._ids[slot] = request_id
        self._next_sequence += 1
        return slot

    def _grow(self) -> None:
        ints, floats, flags = self.ints, self.floats, self.flags
        old = ints.shape[1]
        self._allocate(2 * old)
        self.ints[:, :old] = ints
        self.floats[:, :old] = floats
        self.flags[:, :old] = flags
        self._ids.extend([""] * old)

    def remove(self, request_id: str) -> None:
        """Forget a request; KeyError when it is not resident."""
        slot = self.slot(request_id)
        del self._slots[request_id]
        self._ids[slot] = ""
        self.active[slot] = False
        self.standard[slot] = self.hopeful[slot] = False
        heapq.heappush(self._free, slot)

    def slot(self, request_id: str) -> int:
        """Slot of a request; KeyError when it is not resident."""
        try:
            return self._slots[request_id]
        except KeyError:
            raise KeyError(f"request {request_id!r} is not resident on this replica") from None

    def request_id(self, slot: int) -> str:
        """Request in a slot; KeyError when the slot is free."""
        if not (0 <= slot < self._used) or not self._ids[slot]:
            raise KeyError(f"slot {slot} holds no request")
        return self._ids[slot]

    def slots(self) -> IntArray:
        """Active slots, ascending by sequence."""
        active = np.flatnonzero(self.active[: self._used])
        return active[np.argsort(self.sequence[active], kind="stable")]

    def hosts_hope(self) -> bool:
        """Whether a hopeful request without a promise is resident."""
        used = self._used
        return bool((self.hopeful[:used] > self.standard[:used]).any())  # a free slot is neither

    def copy(self) -> RequestTable:
        """Return an independent copy."""
        other = RequestTable.__new__(RequestTable)
        other.ints, other.floats, other.flags = self.ints.copy(), self.floats.copy(), self.flags.copy()
        other._bind()
        other._slots, other._ids, other._free = dict(self._slots), list(self._ids), list(self._free)
        other._used, other._next_sequence = self._used, self._next_sequence
        return other

    def promote(self, slot: int) -> None:
        """Make a request standard."""
        self.standard[slot] = True

    def relegate(self, slot: int) -> None:
        """Make a request best effort, without hope: its deadlines count no more."""
        self.standard[slot] = self.hopeful[slot] = False

    def prefilled(self, slot: int, tokens: int) -> None:
        """Account for a computed chunk of a prefill."""
        if tokens < 0 or tokens > self.prefill_remaining[slot]:
            raise ValueError(f"a chunk of {tokens} tokens, but {self.prefill_remaining[slot]} remain")
        self.prefill_remaining[slot] -= tokens
        self.context[slot] += tokens

    def first_token(self, slot: int, at_s: float) -> None:
        """Account for the stage's first token: the due line of the tokens after it starts here.

        A late one ends the hope of a request that was promised nothing.
        """
        self.hopeful[slot] &= at_s <= self.prefill_deadline_s[slot]
        self.next_deadline_s[slot] = max(self.prefill_deadline_s[slot], at_s) + self.tpot_s[slot]
        self._generate(slot, 1)

    def tokens_out(self, slot: int, count: int) -> None:
        """Account for tokens after the first, `count` of them in one step."""
        self.next_deadline_s[slot] += count * self.tpot_s[slot]
        self._generate(slot, count)

    def _generate(self, slot: int, count: int) -> None:
        self.generated[slot] += count
        self.context[slot] = self.prompt_tokens[slot] + self.generated[slot] - 1
        self.prefill_remaining[slot] = 0
        self.remaining_output[slot] = max(self.remaining_output[slot] - count, 1)
        self.max_remaining_output[slot] = max(self.max_remaining_output[slot] - count, 1)

    def thinking_ended(self, slot: int) -> None:
        """Move to the answer's TPOT from the next token on; the due line continues."""
        self.next_deadline_s[slot] += self.answer_tpot_s[slot] - self.tpot_s[slot]
        self.tpot_s[slot] = self.answer_tpot_s[slot]

    def preempted(self, slot: int) -> None:
        """Account for dropped KV: generated tokens are kept, one prefill over prompt + generated rebuilds the rest."""
        self.prefill_remaining[slot] = self.prompt_tokens[slot] + self.generated[slot]
        self.context[slot] = 0
        self.kv_blocks[slot] = 0
        self.preemptions[slot] += 1
