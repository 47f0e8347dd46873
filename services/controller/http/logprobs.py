"""Log probabilities in the two forms that OpenAI's endpoints have."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from protos.slos.v1 import common_pb2
from services.controller.tokenizer import ModelTokenizer


def chat_logprobs(
    positions: Iterable[common_pb2.PositionLogprobs], top: int, tokenizer: ModelTokenizer
) -> list[dict[str, Any]]:
    """One entry per output token, with its top alternatives (count)."""
    content: list[dict[str, Any]] = []
    for position in positions:
        if position.tokens:
            entry = _entry(position.tokens[0], tokenizer)
            entry["top_logprobs"] = [_entry(token, tokenizer) for token in _most_probable(position, top)]
            content.append(entry)
    return content


def _entry(token: common_pb2.TokenLogprob, tokenizer: ModelTokenizer) -> dict[str, Any]:
    return {"token": token.text, "logprob": token.logprob, "bytes": list(_bytes(token, tokenizer))}


def _bytes(token: common_pb2.TokenLogprob, tokenizer: ModelTokenizer) -> bytes:
    """The text's bytes; where the token is only part of a character its text cannot say which part, so ask."""
    if not token.text or "\ufffd" in token.text:
        return tokenizer.token_bytes(token.token_id)
    return token.text.encode()


def _most_probable(position: common_pb2.PositionLogprobs, top: int) -> list[common_pb2.TokenLogprob]:
    """The most probable tokens; the chosen one is among them only if it belongs there."""
    distinct = {token.token_id: token for token in position.tokens}
    return sorted(distinct.values(), key=lambda token: -token.logprob)[:top]


class CompletionLogprobs:
    """Parallel lists over the output tokens; text_offset counts characters over the whole output."""

    def __init__(self, top: int) -> None:
        """top: alternatives per token (count)."""
        self._top = top
        self._offset = 0

    def convert(self, positions: Iterable[common_pb2.PositionLogprobs]) -> dict[str, list[Any]]:
        """The lists for new positions."""
        lists: dict[str, list[Any]] = {"text_offset": [], "token_logprobs": [], "tokens": [], "top_logprobs": []}
        for position in positions:
            if not position.tokens:
                continue
            chosen = position.tokens[0]
            lists["text_offset"].append(self._offset)
            lists["token_logprobs"].append(chosen.logprob)
            lists["tokens"].append(chosen.text)
            # OpenAI's endpoint shows the chosen token here even when others are more probable.
            shown = {token.text: token.logprob for token in _most_probable(position, self._top)}
            lists["top_logprobs"].append({**shown, chosen.text: chosen.logprob})
            self._offset += len(chosen.text)
        return lists
