"""What the numbers mean, in words: the end of docs/evaluation.md."""

FINDINGS = """## What is simulated, what is real, where the project loses

* The engine is a time model: a step takes what the profile says, plus noise where stated. Kernels, launches, tile
  sizes and the Python of an engine are in it only as far as the profile's fit holds them. Tool latency is assumed.
* A planner decides at the next step boundary with the state that boundary will have; a real controller decides a
  network hop earlier, on the state of the last event.
* Best-effort work runs on after the last arrival until all of it has finished; it never counts as attained unless it
  was promised again while its deadlines could still be met.
"""
