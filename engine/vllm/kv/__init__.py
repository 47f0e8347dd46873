"""Plugs the KV exchange (engine/kv) into vLLM as a KV connector.

settings.py    what an engine is started with to exchange KV
scheduler.py   the connector's half inside vLLM's scheduler: which requests hand over or take over which blocks
worker.py      the connector's half beside the caches: drives an engine.kv.endpoint.KvEndpoint
connector.py   the class that vLLM loads, one instance per half

In its place, for RDMA fabrics: nixl_settings.py and nixl.py (vLLM's own NixlConnector) with held.py (decode halves that
wait for their prefill half's word).
"""
