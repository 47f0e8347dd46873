"""The named policies: one small file each, with a function `policy() -> Policy`; scheduling.registry lists them."""
