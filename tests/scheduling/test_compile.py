"""After the warm-up nothing is left to compile or load: no first request pays for it."""

from __future__ import annotations

import subprocess
import sys

FOLLOW = """
import gc
import numpy as np
from numba.core.dispatcher import Dispatcher
from scheduling import registry, routing
from scheduling.compile import warm_up
from scheduling.foresight import after_step
from scheduling.policy import ReplicaView
from scheduling.promotion import promote
from scheduling.request_table import RequestTable
from scheduling.time_model import TimeModel
from scheduling.types import Candidate, EngineLimits, Slo

def compiled():
    return {f"{o.py_func.__module__}.{o.py_func.__name__} {s}" for o in gc.get_objects() if isinstance(o, Dispatcher)
            for s in o.overloads}

warm_up(("slos",))
before = compiled()
model = TimeModel(((0.02, 1e-4, 0.0, 1e-7, 1e-9, 0.0), (0.01, 1.2e-4, 0.0, 1e-7, 1e-9, 0.0)), margin=1.05)
limits = EngineLimits(2048, 64, 16, 4096, 4096)
policy = registry.get("slos")
rng = np.random.default_rng(0)
seen = set()
for case in range(40):
    table = RequestTable()
    for k in range(case):
        table.add(f"r{k}", prompt_tokens=50, generated=1, context=50, prefill_deadline_s=0.0, kv_blocks=4,
                  next_deadline_s=0.1, tpot_s=float(rng.choice([0.05, 0.1])), standard=case % 2 == 0 or k % 3 > 0)
    burst = [Candidate(f"n{k}", 0.0, int(rng.integers(50, 3000)), Slo(float(rng.uniform(0.2, 2.0)), 0.1), 50, 100,
                       value=float(rng.integers(1, 4))) for k in range(1 + case % 10 if case < 30 else 40)]
    decision = policy.admission.decide(0.0, table, 3000, model, limits, burst)
    seen.add(decision.explain.get("labels_ran_out"))
    plan = policy.batching.plan(0.0, table, 3000, model, limits)
    after_step(table, 3000, plan, 0.1, limits.block_size)
    promote(0.0, table, 3000, model, limits, policy.admission, [f"r{k}" for k in range(0, case, 3)])
    view = ReplicaView("r", table, 3000, model, limits)
    for name in routing.ROUTING:
        routing.get(name).order(0.0, burst[0], [view, view])
assert seen == {True, False}, seen
late = compiled() - before
assert not late, sorted(late)
print("nothing compiled late")
"""


def test_nothing_compiles_after_the_warm_up() -> None:
    done = subprocess.run([sys.executable, "-c", FOLLOW], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "nothing compiled late"
