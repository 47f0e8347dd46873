"""A worker that computes prompts: the host of services.worker_host with role prefill unless told otherwise."""
