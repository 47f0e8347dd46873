"""Facts about a model folder that need neither torch nor transformers."""

from __future__ import annotations

import hashlib
from pathlib import Path

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)


def tokenizer_hash(folder: Path | str) -> str:
    """Return the SHA-256, hexadecimal, over names and bytes of the tokenizer's files.

    Controller and workers compare it: with different files the same ids would be different text.
    FileNotFoundError when the folder holds none of the files.
    """
    digest = hashlib.sha256()
    found = False
    for name in _TOKENIZER_FILES:
        path = Path(folder) / name
        if path.is_file():
            found = True
            content = path.read_bytes()
            digest.update(f"{name} {len(content)}\n".encode())
            digest.update(content)
    if not found:
        raise FileNotFoundError(
            f"{folder} holds no tokenizer (none of {', '.join(_TOKENIZER_FILES)}); give the path of a model folder"
        )
    return digest.hexdigest()
