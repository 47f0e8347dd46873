"""What a new leader does about the requests of the one before.

Their clients were connected to a process that is gone, and nobody would read their output; so they are closed in the
journal, and the workers are told to drop them when they are attached: whatever a worker holds that this controller
has not submitted is cancelled, journaled or not. A client sends its request again, under the same id if it likes.
"""

from __future__ import annotations

from services.common.store import Store

REASON = "the controller that served it is gone, and its client with it; send the request again"


async def close_abandoned(store: Store, fencing_token: int) -> int:
    """Close every open journal and empty the best-effort queue; return how many requests there were."""
    records = await store.journal.list_open()
    for record in records:
        closing: dict[str, object] = {
            "finish_reason": "error",
            "error": REASON,
            "output_tokens": sum(_tokens(entry) for entry in record.entries.values()),
        }
        await store.journal.close(record.request_id, closing, fencing_token)
    await store.best_effort.remove(await store.best_effort.all())
    return len(records)


def _tokens(entry: dict[str, object]) -> int:
    token_ids = entry.get("token_ids")
    return len(token_ids) if isinstance(token_ids, list) else 0
