"""Renders chat messages with a model's own Jinja template, the way the model was trained."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

TOOL_SYSTEM_PROMPT = """# Tools

You may call one or more functions to help with the user's request.

The functions are described as JSON inside <tools></tools>:
<tools>
{tools}
</tools>

For each call, answer with a JSON object with the function's name and arguments inside <tool_call></tool_call>:
<tool_call>
{{"name": <function name>, "arguments": <arguments as a JSON object>}}
</tool_call>"""


class TemplateError(ValueError):
    """The template cannot render these messages; the text says why."""


class _GenerationBlock(jinja2.ext.Extension):
    """Accepts {% generation %} ... {% endgeneration %}, which some templates use to mark training targets."""

    tags: set[str] = {"generation"}  # noqa: RUF012 - declared so by Jinja

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    """JSON without the HTML escapes of Jinja's own filter: models were trained on plain JSON."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _strftime_now(fmt: str) -> str:
    return datetime.now().strftime(fmt)


class ChatTemplate:
    """One compiled template.

    Templates come with the model and run in Jinja's sandbox. A template that does not take tools gets them as a
    system message in Hermes form (TOOL_SYSTEM_PROMPT), and the calls and results of earlier rounds as text in the
    same form, so that tool loops work with any chat model.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """special_tokens: bos_token, eos_token ... as templates name them."""
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, "jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        self._special_tokens = dict(special_tokens)
        try:
            self._template = environment.from_string(source)
            names = jinja2.meta.find_undeclared_variables(environment.parse(source))
        except jinja2.TemplateError as error:
            raise TemplateError(f"the chat template of this model does not compile: {error}") from error
        self.renders_tools = "tools" in names

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
    ) -> str:
        """Text of the prompt; raises TemplateError when the template refuses the messages.

        messages: role, content (text) and, where present, tool_calls (with arguments as objects), tool_call_id, name.
        """
        if not self.renders_tools:
            messages, tools = _tools_as_text(messages, tools), None
        try:
            return self._template.render(
                **self._special_tokens,
                messages=messages,
                tools=tools or None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
            )
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            raise TemplateError(f"the model's chat template refuses these messages: {error}") from error


def _tools_as_text(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None
) -> list[dict[str, Any]]:
    """The same conversation without anything that only a tool-aware template understands."""
    plain: list[dict[str, Any]] = []
    for message in messages:
        role, content = message["role"], message.get("content") or ""
        if role == "tool":
            block = f"<tool_response>\n{content}\n</tool_response>"
            if plain and plain[-1]["role"] == "user" and plain[-1].get("from_tool"):
                plain[-1]["content"] += "\n" + block
            else:
                plain.append({"role": "user", "content": block, "from_tool": True})
            continue
        for call in message.get("tool_calls") or ():
            block = f"<tool_call>\n{_tojson(call['function'])}\n</tool_call>"
            content = f"{content}\n{block}" if content else block
        plain.append({"role": role, "content": content})
    for message in plain:
        message.pop("from_tool", None)
    if tools:
        text = TOOL_SYSTEM_PROMPT.format(tools="\n".join(_tojson(tool) for tool in tools))
        if plain and plain[0]["role"] == "system":
            plain[0]["content"] = f"{plain[0]['content']}\n\n{text}"
        else:
            plain.insert(0, {"role": "system", "content": text})
    return plain
