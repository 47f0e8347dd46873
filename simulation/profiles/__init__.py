"""Hardware profiles by name: what one replica (a GPU or a tensor-parallel group) can do, and how well we know it."""

from simulation.profiles.profile import FOLDER, Link, Profile, Provenance, load, names

__all__ = ["FOLDER", "Link", "Profile", "Provenance", "load", "names"]
