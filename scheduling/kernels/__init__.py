"""The compiled core: numba kernels over the columns of a RequestTable and the lines of a TimeModel.

jit          the decorator, and where compiled code is kept
rows         layout of the planning state that kernels share
steptime     duration of a batch and the largest chunk for a time
batches      one batch of Algorithm 2 in per-request form; commit: the state after it
rollout      exact simulation of batches: is this state feasible?
peak         future peak of memory and of decode load
promised     the batch of the promised requests; shed: whom to give up when not all can be kept
speculation  tokens to verify per decode
memory       KV blocks for a batch: whom to preempt
filler       best-effort work beside a batch; settings: rows of its settings
step         the plan of one step, from the parts above
search       admission: greedy and label search over simulated states
budget       PB*; tierplan: Algorithm 1; paper_step: the paper's batch
load         how busy a replica is; trace: lines of a plan for people
"""
