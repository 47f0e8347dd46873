"""The brain: who is promised what, and what the next batch is. Pure functions on arrays; no I/O, no clock.

Map of the folder
  types, policy           what the planner talks about; the protocols every policy implements
  classes, deadlines      application classes (the paper's Table 1); SLO fields -> Slo
  request_table           resident requests of one replica as arrays, and their transitions
  time_model, fit         step time: prediction, inverse; fit from measured batches
  margin                  safety margin learned from the model's errors
  refit                   another time model for an engine that has drifted from its own
  lengths, speculation    online estimates of output lengths and of acceptance; what admission counts on
  scoring                 the one function that says whether SLOs were kept
  batching                the default batch policy and its settings
  admission, explain      the admission problem of one replica as arrays, its exact oracle, its numbers for people
  foresight               a replica as it will stand when its running step has ended
  promotion               best-effort residents that could be promised now
  tiers, paper_batching   the paper's own problem and batches, for `dp` and `edf-pb`
  routing                 which replicas are asked first, by name
  registry, policies/     policies by name: scheduling.registry.get("slos") -> Policy
  kernels/                the compiled core; `python -m scheduling.compile` fills its cache at install
"""
