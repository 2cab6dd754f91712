"""Flags and `POLYHEAD_*` environment variables become one frozen Settings, checked once at start; flags win."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

from pydantic import BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

ENVIRONMENT_PREFIX = "POLYHEAD_"


class UsageError(Exception):
    """Flags or environment that make no sense; the text is one line."""


def port_or_off(value: object) -> object:
    return None if value == "off" else value


SIZE = re.compile(r"([0-9]+)([KMG]?)")
UNITS = {"": 0, "K": 10, "M": 20, "G": 30}


def size_in_bytes(value: object) -> object:
    """`512M` → 536870912."""
    if isinstance(value, str):
        if not (found := SIZE.fullmatch(value)):
            raise ValueError("should be a number of bytes, or of units with the suffix K, M or G")
        return int(found[1]) << UNITS[found[2]]
    return value


def several(value: object) -> object:
    """`a,b` → (a, b)."""
    return tuple(name.strip() for name in value.split(",") if name.strip()) if isinstance(value, str) else value


def all_or_count(value: object) -> object:
    return {"latest": 1, "all": None}.get(value, value) if isinstance(value, str) else value


Size = Annotated[int, BeforeValidator(size_in_bytes)]
Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(several)]
Count = Annotated[Annotated[int, Field(ge=1)] | None, BeforeValidator(all_or_count)]
Port = Annotated[int, Field(ge=0, le=65535)]
OptionalPort = Annotated[Port | None, BeforeValidator(port_or_off)]


class Settings(BaseSettings):
    """What a server process is told. Each field is the flag `--like-this` and the variable `POLYHEAD_LIKE_THIS`."""

    model_config = SettingsConfigDict(env_prefix=ENVIRONMENT_PREFIX, env_ignore_empty=True, frozen=True)

    models: Path = Field(description="folder with NAME/VERSION/bundle.json for each model; required")
    versions: Count = Field(
        1, description="how many of the newest versions of each model to load: latest, all or a number"
    )
    reload_seconds: float = Field(
        5, ge=0, le=86_400, allow_inf_nan=False, description="how often to look for new versions; 0: never"
    )
    allow_model_control: bool = Field(False, description="let callers load, reload and unload models")
    on_demand: Names = Field((), description="models to load at their first request, separated by commas; * for all")
    max_model_memory: Size | None = Field(
        None, ge=1, description="bytes for all models together, such as 512M or 8G (default: no limit)"
    )
    host: str = Field("127.0.0.1", min_length=1, description="address to serve gRPC on; 0.0.0.0 or [::] for all")
    port: Port = Field(50051, description="gRPC port; 0 takes any free one")
    metrics_host: str = Field("127.0.0.1", min_length=1, description="address to serve /metrics on")
    metrics_port: OptionalPort = Field(9464, description="HTTP port of /metrics; 0 takes any free one, off serves none")
    threads: int | None = Field(
        None, ge=1, description="threads of onnxruntime (default: the processors this process may use)"
    )
    slots: int = Field(16, ge=1, le=4096, description="sequences that each decoder generates at the same time")
    slot_tokens: int | None = Field(
        None,
        ge=2,
        description="longest prompt with its answer, in tokens (default: the model's longest, at most 2048)",
    )
    prefix_slots: int = Field(
        4, ge=0, le=4096, description="beginnings of prompts that each decoder keeps for the next ones, in fp32"
    )
    prefill_budget_tokens: int = Field(
        32,
        ge=1,
        description="tokens read between two steps of generation, for each prompt (four at most) or source being read",
    )
    default_max_tokens: int = Field(256, ge=1, description="longest answer of a request that does not say, in tokens")
    max_concurrent_calls: int = Field(4096, ge=1, description="calls that may run at the same time; more are rejected")
    max_queue_requests: int = Field(1024, ge=1, description="requests that may wait for a model; more are rejected")
    max_queue_tokens: int = Field(262_144, ge=1, description="tokens that may wait for a model; more are rejected")
    max_batch_tokens: int = Field(512, ge=1, description="tokens with padding in one batch of inputs to an encoder")
    max_inputs: int = Field(512, ge=1, description="inputs in one Classify, Embed or Tokenize request")
    max_message_bytes: int = Field(16 * 2**20, ge=1024, le=2**31 - 1, description="largest request message, in bytes")
    drain_seconds: float = Field(
        30, ge=0, le=86_400, allow_inf_nan=False, description="time that running calls get to finish after SIGTERM"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least severity to log")
    log_format: Literal["console", "json"] = Field("console", description="how log lines look")


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose complaints are one line."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see {self.prog} --help")


def parse(arguments: Sequence[str], prog: str = "polyhead serve") -> Settings:
    """Settings from flags, then the environment, then defaults. Raises UsageError; `--help` exits."""
    flags = vars(parser(prog).parse_args(arguments))
    try:
        return Settings(**flags)
    except ValidationError as error:
        raise UsageError("; ".join(complaint(dict(problem)) for problem in error.errors())) from error


def parser(prog: str) -> Parser:
    """One flag a field, all as text: pydantic converts and checks flags and environment alike."""
    result = Parser(
        prog=prog,
        description="Serve the models of a folder over gRPC.",
        epilog=f"Each flag can be given as an environment variable: --slot-tokens as {ENVIRONMENT_PREFIX}SLOT_TOKENS.",
        allow_abbrev=False,
    )
    for name, field in Settings.model_fields.items():
        default = "" if field.is_required() or field.default in (None, ()) else f" (default: {field.default})"
        bare: dict[str, Any] = {"nargs": "?", "const": "true"} if field.annotation is bool else {}
        result.add_argument(
            flag(name), default=argparse.SUPPRESS, metavar=name.upper(), help=f"{field.description}{default}", **bare
        )
    return result


def flag(field: str) -> str:
    return "--" + field.replace("_", "-")


def complaint(problem: dict[str, Any]) -> str:
    field = str(problem["loc"][0])
    source = f"{flag(field)} ({ENVIRONMENT_PREFIX}{field.upper()})"
    if problem["type"] == "missing":
        return f"{source} is required"
    return f"{source}: {problem['msg']}, got {problem['input']!r}"
