"""The data path of a pair: a torch.distributed process group of two, made without any global state.

NCCL moves tensors on a GPU, Gloo tensors in host memory; everything above this file is the same for both.
"""

from __future__ import annotations

import time
from datetime import timedelta

import torch
import torch.distributed as dist

from engine.kv.config import KvConfig, KvExchangeError
from engine.kv.layout import KvLayout

CONSUMER, PRODUCER = 0, 1
"""Ranks in the group: the consumer hosts the store."""


def resolve_backend(config: KvConfig, layout: KvLayout) -> str:
    """Return "nccl", "gloo" or "tcp" for these caches; KvExchangeError when what is asked for cannot be had."""
    device = layout.device
    if config.backend == "tcp" and not layout.in_host_words:
        raise KvExchangeError("the tcp KV backend needs contiguous KV caches in host memory: choose auto")
    if config.backend == "auto":
        return "nccl" if device.type == "cuda" and dist.is_nccl_available() else "gloo"
    if config.backend == "nccl" and not (device.type == "cuda" and dist.is_nccl_available()):
        raise KvExchangeError("the nccl KV backend needs KV caches on a GPU and a torch built with NCCL")
    return config.backend


class Transfer:
    """One send or receive under way."""

    def __init__(self, work: dist.Work, timeout_s: float, on_device: bool) -> None:
        """Keep the handle and the longest time that wait may take."""
        self._work = work
        self._timeout_s = timeout_s
        self._on_device = on_device

    def wait(self) -> None:
        """Return when the buffer may be reused (send) or holds the data (receive); KvExchangeError when it will not."""
        try:
            if self._on_device:
                # NCCL's own wait only orders streams; the host must know, for it reuses the buffer.
                self._poll()
            else:
                self._work.wait(timedelta(seconds=self._timeout_s))
        except RuntimeError as error:
            raise KvExchangeError(f"KV data did not move: {str(error).splitlines()[0][:200]}") from error

    def _poll(self) -> None:
        deadline = time.monotonic() + self._timeout_s
        while not self._work.is_completed():
            if time.monotonic() > deadline:
                raise KvExchangeError(f"KV data did not move within {self._timeout_s:.1f} s")
            time.sleep(50e-6)


class TorchLink:
    """A process group of a producer and a consumer."""

    def __init__(self, group: dist.ProcessGroup, rank: int, io_timeout_s: float, store: dist.Store) -> None:
        """Use host_link or join_link to make one."""
        self._group: dist.ProcessGroup | None = group
        self._peer = 1 - rank
        self._io_timeout_s = io_timeout_s
        self._store: dist.Store | None = store

    def send(self, data: torch.Tensor) -> Transfer:
        """Start to send a flat contiguous tensor."""
        if self._group is None:
            raise KvExchangeError("the link is closed")
        try:
            return Transfer(self._group.send([data], self._peer, 0), self._io_timeout_s, data.is_cuda)
        except RuntimeError as error:
            raise KvExchangeError(f"KV data cannot be sent: {str(error).splitlines()[0][:200]}") from error

    def receive(self, buffer: torch.Tensor) -> Transfer:
        """Start to receive into a flat contiguous tensor of exactly the size that is sent."""
        if self._group is None:
            raise KvExchangeError("the link is closed")
        try:
            return Transfer(self._group.recv([buffer], self._peer, 0), self._io_timeout_s, buffer.is_cuda)
        except RuntimeError as error:
            raise KvExchangeError(f"KV data cannot be received: {str(error).splitlines()[0][:200]}") from error

    def close(self) -> None:
        """Drop the group; operations under way fail by their own timeout."""
        group, self._group, self._store = self._group, None, None
        if group is not None and hasattr(group, "abort") and group.name() == "nccl":
            group.abort()


def open_store(host: str, timeout_s: float) -> dist.TCPStore:
    """Start the store through which the two ends of one link find each other, on a free port."""
    try:
        return dist.TCPStore(
            host, 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=timeout_s), use_libuv=True
        )
    except (RuntimeError, ValueError) as error:
        raise KvExchangeError(f"cannot open a rendezvous store on {host}: {error}") from error


def join_store(host: str, port: int, timeout_s: float) -> dist.TCPStore:
    """Connect to the store that the consumer opened."""
    try:
        return dist.TCPStore(
            host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=timeout_s), use_libuv=True
        )
    except (RuntimeError, ValueError) as error:
        raise KvExchangeError(f"cannot reach the rendezvous store {host}:{port}: {error}") from error


def make_link(store: dist.TCPStore, rank: int, backend: str, local_host: str, config: KvConfig) -> TorchLink:
    """Form the process group of a pair; both ends call this at the same time.

    local_host is the address of this host that the other end reached or is reached from: Gloo listens there.
    """
    timeout = timedelta(seconds=config.connect_timeout_s)
    scoped = dist.PrefixStore("kv", store)
    try:
        group: dist.ProcessGroup
        if backend == "nccl":
            options = dist.ProcessGroupNCCL.Options()
            options._timeout = timeout
            group = dist.ProcessGroupNCCL(scoped, rank, 2, options)
        else:
            gloo = dist.ProcessGroupGloo._Options()
            gloo._timeout = timeout
            gloo._devices = [dist.ProcessGroupGloo.create_device(hostname=local_host)]
            group = dist.ProcessGroupGloo(scoped, rank, 2, gloo)
    except RuntimeError as error:
        raise KvExchangeError(f"the KV process group did not form: {str(error).splitlines()[0][:200]}") from error
    return TorchLink(group, rank, config.io_timeout_s, store)
