"""Tests of the real engine."""
