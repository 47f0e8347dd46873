"""Workloads by name: the paper's six scenarios, from public files or from distributions fitted to them."""
