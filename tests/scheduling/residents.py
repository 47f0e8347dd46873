"""Rows of a request table for tests of single plans: who decodes and who has yet to be computed."""

from __future__ import annotations

from scheduling.request_table import RequestTable


def decode(
    table: RequestTable, name: str, due_s: float, tpot_s: float = 0.05, context: int = 100, **more: object
) -> int:
    """Add a request that has its first token; its next one is due at due_s. Returns its slot."""
    columns: dict = {"kv_blocks": -(-context // 16), "remaining_output": 50, "arrival_s": -1.0, **more}
    return table.add(
        name,
        prompt_tokens=context,
        generated=1,
        context=context,
        prefill_deadline_s=0.0,
        next_deadline_s=due_s,
        tpot_s=tpot_s,
        **columns,
    )


def prefill(table: RequestTable, name: str, due_s: float, tokens: int, tpot_s: float = 0.1, **more: object) -> int:
    """Add a request whose first token is due at due_s. Returns its slot."""
    columns: dict = {"remaining_output": 50, **more}
    return table.add(name, prompt_tokens=tokens, prefill_deadline_s=due_s, tpot_s=tpot_s, **columns)
