"""slosctl chat: talk to the model and see what was promised and kept."""

from __future__ import annotations

import sys
import uuid
from dataclasses import dataclass

import click

from cli.errors import CliError, Exit
from cli.output import json_option, print_json, to_dict
from cli.rpc import Connection, Target, connect, explained
from cli.views import outcome_text, promise_text
from protos.slos.v1 import client_pb2, common_pb2


@dataclass(frozen=True, slots=True)
class Settings:
    """What every turn of one chat shares."""

    model: str
    sampling: common_pb2.Sampling
    slo: common_pb2.SloSpec
    tenant: str
    timeout_s: float
    quiet: bool


@click.command()
@click.argument("message", nargs=-1)
@click.option("--model", help="Model name; needed only when several are served.")
@click.option("--class", "slo_class", default="", metavar="NAME", help="SLO class; see `slosctl slo ls`.")
@click.option("--ttft-ms", type=float, help="Own SLO: time to first token.")
@click.option("--tpot-ms", type=float, help="Own SLO: time per output token.")
@click.option("--reject", is_flag=True, help="Refuse when no promise can be made, in place of best effort.")
@click.option("--max-tokens", default=256, type=click.IntRange(min=1), show_default=True)
@click.option("--temperature", default=0.7, type=click.FloatRange(min=0), show_default=True)
@click.option("--system", default="", help="System message.")
@click.option("--tenant", default="")
@click.option("--timeout", default=300.0, show_default=True, metavar="SECONDS", help="Longest wait for one answer.")
@click.option("--quiet", is_flag=True, help="Print the answer alone.")
@json_option
@click.pass_obj
def chat(
    target: Target,
    message: tuple[str, ...],
    model: str | None,
    slo_class: str,
    ttft_ms: float | None,
    tpot_ms: float | None,
    reject: bool,
    max_tokens: int,
    temperature: float,
    system: str,
    tenant: str,
    timeout: float,
    quiet: bool,
    as_json: bool,
) -> None:
    """Send MESSAGE and print the answer; without MESSAGE, talk until end of input (Ctrl-D)."""
    slo = common_pb2.SloSpec(
        slo_class=slo_class,
        ttft_ms=ttft_ms,
        tpot_ms=tpot_ms,
        on_miss=common_pb2.ON_MISS_REJECT if reject else common_pb2.ON_MISS_BEST_EFFORT,
    )
    history = [client_pb2.ChatMessage(role="system", content=system)] if system else []
    with connect(target) as connection:
        settings = Settings(
            model=model or _only_model(connection),
            sampling=common_pb2.Sampling(max_tokens=max_tokens, temperature=temperature),
            slo=slo,
            tenant=tenant,
            timeout_s=timeout,
            quiet=quiet or as_json,
        )
        if message:
            history.append(client_pb2.ChatMessage(role="user", content=" ".join(message)))
            text, last = _turn(connection, settings, history, session_id="", echo=not as_json)
            if as_json:
                print_json({"text": text, **to_dict(last)})
            return
        if as_json:
            raise CliError("--json needs a MESSAGE.", Exit.USAGE)
        _conversation(connection, settings, history)


def _conversation(connection: Connection, settings: Settings, history: list[client_pb2.ChatMessage]) -> None:
    """Read lines and answer them until end of input; a refused turn is said and taken back."""
    session = f"chat-{uuid.uuid4().hex[:12]}"
    if sys.stdin.isatty():
        click.echo(f"Talking to {settings.model}; Ctrl-D ends.")
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        if not line:
            continue
        history.append(client_pb2.ChatMessage(role="user", content=line))
        try:
            text, _ = _turn(connection, settings, history, session, echo=True)
        except CliError as error:
            if not sys.stdin.isatty():
                raise
            error.show()
            history.pop()
            continue
        history.append(client_pb2.ChatMessage(role="assistant", content=text))


def _turn(
    connection: Connection, settings: Settings, history: list[client_pb2.ChatMessage], session_id: str, echo: bool
) -> tuple[str, client_pb2.GenerateResponse]:
    """Send the conversation, print the answer as it comes; returns its text and the last message."""
    request = client_pb2.GenerateRequest(
        model=settings.model,
        chat=client_pb2.ChatMessages(messages=history),
        sampling=settings.sampling,
        slo=settings.slo,
        session_id=session_id,
        tenant=settings.tenant,
    )
    parts: list[str] = []
    last = client_pb2.GenerateResponse()
    promise = common_pb2.Promise()
    stream = connection.client.Generate(request, timeout=settings.timeout_s, metadata=connection.metadata)
    try:
        with explained(connection.address):
            for answer in stream:
                if answer.HasField("promise"):
                    if promise_text(answer.promise) != promise_text(promise):
                        _note(settings, promise_text(answer.promise))
                    promise = answer.promise
                if echo and answer.reasoning_text and not settings.quiet:
                    click.secho(answer.reasoning_text, dim=True, nl=False)
                if answer.text:
                    parts.append(answer.text)
                    if echo:
                        click.echo(answer.text, nl=False)
                last = answer
    finally:
        stream.cancel()
    if echo:
        click.echo()
    if not last.HasField("promise"):
        last.promise.CopyFrom(promise)
    if last.HasField("outcome"):
        _note(settings, f"{outcome_text(last.outcome)}; {last.prompt_tokens} + {last.output_tokens} tokens")
    return "".join(parts), last


def _note(settings: Settings, text: str) -> None:
    if not settings.quiet:
        click.secho(f"[{text}]", dim=True, err=True)


def _only_model(connection: Connection) -> str:
    models = connection.call(connection.client.ListModels, client_pb2.ListModelsRequest()).models
    if not models:
        raise CliError("No model is served yet; see `slosctl replicas ls`.", Exit.UNREACHABLE)
    if len(models) > 1:
        names = ", ".join(model.name for model in models)
        raise CliError(f"Several models are served ({names}): choose one with --model.", Exit.USAGE)
    return str(models[0].name)
