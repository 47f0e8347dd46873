"""The compiled core: numba kernels over the columns of a RequestTable and the lines of a TimeModel.

jit         the decorator, and where compiled code is kept
rows        layout of the planning state that kernels share
steptime    duration of a batch and the largest chunk for a time
batches     one batch of Algorithm 2 in per-request form
rollout     exact simulation of batches: is this state feasible?
peak        future peak of memory and of decode load
step        the plan of one step
search      admission: greedy and label search over simulated states
"""
