"""The host around one engine: the worker API, the lease in the registry, and an orderly end.

`python -m services.prefill_worker` and `python -m services.decode_worker` are the same host with another role; a
co-located worker is `python -m services.decode_worker --role both`.
"""
