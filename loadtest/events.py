"""The events a run fires beside locust's own `request`; subscribe with `events.promise.add_listener(function)`.

promise(application, promise): the controller's first word on a request, a PromiseInfo.
ttft(application, ms): the first token came, counted at the client from the moment of sending.
tpot(application, ms): a request ended; its mean time per token after the first, at the client.
attainment(record): a request ended, well or not, and is scored; a Record.
"""

from __future__ import annotations

from locust.event import EventHook

promise = EventHook()
ttft = EventHook()
tpot = EventHook()
attainment = EventHook()
