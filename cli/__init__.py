"""slosctl: starts a cluster on this machine and operates any cluster through its gRPC API."""
