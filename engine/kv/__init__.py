"""KV exchange between a prefill and a decode engine (no vLLM here; engine/vllm/kv plugs it in).

config.py      settings and the identity of one end
layout.py      where a block's bytes lie in the caches; gather and scatter
buffers.py     the memory that messages pass through
control.py     framed JSON messages over the control socket of a pair
link.py        the data path: a torch.distributed process group of two (NCCL or Gloo)
socket_link.py the data path without copies, between caches in host memory (TCP)
transfers.py   the state of one hand-over at its producer and at its consumer
listener.py    where producers call
pair.py        what both ends of a pair share: control socket, heartbeats, death
outbound.py    the producer's end of a pair: what is sent, and when
sending.py     how pieces get onto the link, by way of buffers or not
inbound.py     the consumer's end of a pair: what is received, and for whom
receiving.py   how pieces get from the link into the blocks, by way of buffers or not
reports.py     transfers that ended, and counts
endpoint.py    what an engine uses: offer, computed, expect, abort, poll

One pair carries one direction, from a producer to a consumer, and is made on first use. The control socket says what
comes next and notices a dead peer at once; the link moves the bytes. Every wait is bounded by config.KvConfig.
"""
