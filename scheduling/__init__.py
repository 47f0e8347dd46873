"""The brain: who is promised what, and what the next batch is. Pure functions on arrays; no I/O, no clock.

Map of the folder
  types, policy           what the planner talks about; the protocols every policy implements
  classes, deadlines      application classes (the paper's Table 1); SLO fields -> Slo
  request_table           resident requests of one replica as arrays, and their transitions
  time_model, fit         step time: prediction, inverse; fit from measured batches
  lengths                 online estimate of output lengths
  scoring                 the one function that says whether SLOs were kept
  registry, policies/     policies by name: scheduling.registry.get("slos") -> Policy
"""
