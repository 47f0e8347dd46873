"""A worker that produces tokens: the host of services.worker_host with role decode unless told otherwise."""
