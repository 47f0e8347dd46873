"""Settings of the controller process, as options or from SLOS_CONTROLLER_ variables."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from services.common.security import SecuritySettings
from services.common.settings import LogSettings
from services.common.store import StoreSettings
from services.controller.core import CoreSettings
from services.controller.http.settings import HttpSettings
from services.controller.tokenizer import Thinking


@dataclass(frozen=True, slots=True)
class ControllerSettings:
    """Everything the process needs to know.

    models: model name -> folder with its tokenizer. Ports: 0 lets the system choose. address_file: JSON with the
    addresses is written there once the process listens; empty: nowhere. drain_s: how long running requests may take
    after SIGTERM. leader_ttl_s: how long the lock outlives a leader that died.
    """

    models: dict[str, Path]
    controller_id: str
    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int = 9000
    address_file: str = ""
    policy: str = "slos"
    routing: str = ""
    api_keys: str = ""
    drain_s: float = 30.0
    leader_ttl_s: float = 3.0
    thinking: Thinking = field(default_factory=Thinking)
    core: CoreSettings = field(default_factory=CoreSettings)
    http: HttpSettings = field(default_factory=HttpSettings)
    store: StoreSettings = field(default_factory=StoreSettings)
    security: SecuritySettings = field(default_factory=SecuritySettings)
    logs: LogSettings = field(default_factory=LogSettings)
