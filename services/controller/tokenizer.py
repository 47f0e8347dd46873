"""Text to token ids and back, from a model folder; needs neither torch nor an engine."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import tokenizers

from services.common.model_folder import tokenizer_hash
from services.controller.chat_template import ChatTemplate, TemplateError

_SPECIAL_TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


class ModelFolderError(ValueError):
    """The folder does not hold what the controller needs of a model; the text says what is missing."""


@dataclass(frozen=True, slots=True)
class Thinking:
    """How a model marks its thinking stage.

    when: "prompt", the model thinks if the rendered prompt ends inside an open block (the template opened it);
    "always", unless the rendered prompt closes the block (for models that open it themselves); "never".
    """

    start: str = "<think>"
    end: str = "</think>"
    when: Literal["prompt", "always", "never"] = "prompt"


PROMPT_LED = Thinking()


class ModelTokenizer:
    """Tokenizer and chat template of one model; safe to use from several threads."""

    def __init__(self, name: str, folder: Path, thinking: Thinking = PROMPT_LED) -> None:
        """Load the folder; raises ModelFolderError when a needed file is missing or broken.

        name: the model name that requests use.
        """
        self.name = name
        self.folder = folder
        self.thinking = thinking
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise ModelFolderError(f"{folder} has no tokenizer.json; give the folder of a model with a fast tokenizer")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception for any malformed file
            raise ModelFolderError(f"{path} cannot be read as a tokenizer: {error}") from error
        # A folder may carry the training run's truncation; prompts are never cut here.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.hash = tokenizer_hash(folder)
        self.vocab_size: int = self._tokenizer.get_vocab_size(with_added_tokens=True)
        config = _read_json(folder / "tokenizer_config.json")
        source = _template_source(folder, config)
        try:
            self.template = None if source is None else ChatTemplate(source, _special_tokens(folder, config))
        except TemplateError as error:
            raise ModelFolderError(f"{folder}: {error}") from error
        self.thinking_start_id = self.token_id(thinking.start)
        self.thinking_end_id = None if thinking.when == "never" else self.token_id(thinking.end)
        if thinking.when == "always" and self.thinking_end_id is None:
            raise ModelFolderError(f"{thinking.end!r} is not one token of {name}; give the marker that ends thinking")

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of text; add_special_tokens adds what the model expects around plain text (often a BOS token)."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of token ids; ids outside the vocabulary raise ValueError."""
        self.check_ids(token_ids)
        text: str = self._tokenizer.decode(list(token_ids), skip_special_tokens=skip_special_tokens)
        return text

    def check_ids(self, token_ids: Iterable[int]) -> None:
        """Raise ValueError when an id is outside the vocabulary."""
        for token_id in token_ids:
            if not 0 <= token_id < self.vocab_size:
                raise ValueError(f"token id {token_id} is outside the model's vocabulary (0..{self.vocab_size - 1})")

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
    ) -> str:
        """Prompt text of a conversation; raises chat_template.TemplateError when it cannot be rendered."""
        if self.template is None:
            raise TemplateError(f"model {self.name} has no chat template; send its prompt as plain text")
        return self.template.render(messages, tools, add_generation_prompt)

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
    ) -> list[int]:
        """Token ids of a conversation; the template writes the special tokens itself."""
        return self.encode(self.render_chat(messages, tools, add_generation_prompt), add_special_tokens=False)

    def token_id(self, text: str) -> int | None:
        """Id of the one token with this exact text, for markers such as </think>; None when there is none."""
        found: int | None = self._tokenizer.token_to_id(text)
        return found

    def thinks(self, token_ids: Sequence[int]) -> bool:
        """Whether a generation after this prompt starts in the thinking stage."""
        if self.thinking_end_id is None:
            return False
        for token_id in reversed(token_ids[-64:]):
            if token_id == self.thinking_end_id:
                return False
            if token_id == self.thinking_start_id:
                return True
        return self.thinking.when == "always"

    def token_bytes(self, token_id: int) -> bytes:
        """Bytes that the token stands for, also where they are only part of a character."""
        token: str | None = self._tokenizer.id_to_token(token_id)
        if token is None:
            return b""
        try:
            return bytes(self._byte_of_character[character] for character in token)
        except KeyError:  # an added token, or a vocabulary that is not byte-level
            return token.encode()

    @cached_property
    def _byte_of_character(self) -> dict[str, int]:
        """Inverse of GPT-2's map from bytes to printable characters, which byte-level vocabularies are written in."""
        printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        table = {chr(byte): byte for byte in printable}
        others = (byte for byte in range(256) if byte not in set(printable))
        return table | {chr(256 + index): byte for index, byte in enumerate(others)}


class Catalog(Mapping[str, ModelTokenizer]):
    """The models that this controller can serve, by the name that requests use."""

    def __init__(self, models: Sequence[ModelTokenizer]) -> None:
        """Raises ModelFolderError when a name occurs twice."""
        self._models = {model.name: model for model in models}
        if len(self._models) != len(models):
            raise ModelFolderError("two models have the same name; give each its own")

    @classmethod
    def load(cls, folders: Mapping[str, Path], thinking: Thinking = PROMPT_LED) -> Catalog:
        """Load every folder; folders: model name -> folder."""
        return cls([ModelTokenizer(name, Path(folder), thinking) for name, folder in folders.items()])

    def __getitem__(self, name: str) -> ModelTokenizer:
        return self._models[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._models)

    def __len__(self) -> int:
        return len(self._models)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelFolderError(f"{path} is not JSON: {error}") from error
    return value if isinstance(value, dict) else {}


def _special_tokens(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Texts of the named special tokens; either file may hold them, as text or as an object with the text in it."""
    merged = {**_read_json(folder / "special_tokens_map.json"), **config}
    texts: dict[str, str] = {}
    for name in _SPECIAL_TOKEN_NAMES:
        value = merged.get(name)
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            texts[name] = text
    return texts


def _template_source(folder: Path, config: Mapping[str, Any]) -> str | None:
    """The template: its own file, or in tokenizer_config.json as text or as a list of named templates."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    value = config.get("chat_template")
    if isinstance(value, list):
        named = {str(entry.get("name")): entry.get("template") for entry in value if isinstance(entry, dict)}
        value = named.get("default") or next(iter(named.values()), None)
    return value if isinstance(value, str) else None
