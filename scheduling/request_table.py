"""The resident requests of one replica, as arrays.

CONTRACT (the brain's owner fills this file in; the names below are fixed). One RequestTable per engine: the step
scheduler inside vLLM keeps one, the controller keeps a mirror per replica, the simulator keeps one per simulated
replica; the same planning code reads all three.

class RequestTable:
    def __init__(self, capacity: int = 256)        # grows by itself
    # numpy columns, indexed by slot
    active: bool          standard: bool            (False: best effort)
    prefill_remaining     int64  tokens still to compute before the next output token appears; 0 while decoding.
                                 After a preemption: prompt + generated - resident.
    context               int64  tokens whose KV is resident
    prompt_tokens         int64
    generated             int64  output tokens so far
    prefill_deadline_s    f8     when the stage's first token is due
    next_deadline_s       f8     when the next output token is due while decoding (anchor + k * TPOT)
    tpot_s                f8     TPOT in force
    answer_tpot_s         f8     TPOT after thinking ends; equals tpot_s when there is no thinking
    remaining_output      int64  estimate of output tokens still to come (risk level), >= 1
    max_remaining_output  int64  bound by max_tokens
    value                 f8     worth of the promise
    arrival_s             f8
    kv_blocks             int64  blocks held
    accept_rate           f8     speculation: acceptance estimate, 0 = do not speculate
    preemptions           int64
    sequence              int64  order of arrival in this table (best effort is FIFO by arrival_s, then sequence)
    def add(self, request_id: str, **columns) -> int    # slot; ValueError when the id is present
    def remove(self, request_id: str) -> None
    def slot(self, request_id: str) -> int               # KeyError with a clear text
    def request_id(self, slot: int) -> str
    def slots(self) -> IntArray                            # active slots, ascending sequence
    def __len__ / __contains__
    def copy(self) -> RequestTable
    # transitions, used by engine, controller mirror and simulator alike
    def prefilled(self, slot, tokens: int) -> None                  # a chunk was computed
    def first_token(self, slot, at_s: float) -> None                # sets next_deadline_s = max(prefill_deadline, at) + tpot, generated += 1
    def tokens_out(self, slot, count: int) -> None                  # decode tokens: next_deadline_s += count * tpot, context, generated
    def thinking_ended(self, slot) -> None                          # tpot_s = answer_tpot_s from the next token on
    def preempted(self, slot) -> None                               # KV dropped, generated kept
"""
