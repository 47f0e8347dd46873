"""Rows of the settings array that the step kernels read; scheduling.batching.BatchSettings documents each."""

from __future__ import annotations

LONGEST_S, LONGEST_STEPS, TTFT_SHARE, PACES, SHORTEST_STEPS, FILLER_S, FILLER_STEPS, WATERMARK = 0, 1, 2, 3, 4, 5, 6, 7
AGE_S, BESIDE, TURN_S, TURN_EVERY_S, LULL_S, ALONE, AHEAD_S = 8, 9, 10, 11, 12, 13, 14
HOPEFUL_MEMORY, HOPEFUL_RATE = 15, 16
