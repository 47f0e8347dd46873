"""docs/evaluation.md: what is compared, how baselines are configured, tables, figures and text."""
