"""`make demo`: train three models, export them, serve them, call them. What an earlier run made is used again."""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from polyhead.client import Client, PolyheadError, RetryPolicy

ROOT = Path(__file__).parents[1]
RUNS, MODELS, LOG = Path("runs/demo"), Path("models"), Path("runs/demo/server.log")
POLYHEAD = str(Path(sys.executable).with_name("polyhead"))
READY_SECONDS, STOP_SECONDS = 60, 40


@dataclass(frozen=True)
class Model:
    """What the demo trains with `polyhead train RECIPE` and serves as NAME."""

    name: str
    recipe: str
    purpose: str


THREE = (
    Model("python-gpt", "gpt", "continues Python; learns from the source of Python's standard library"),
    Model("language", "classifier", "tells the language of a text; learns from the names in the Unicode CLDR"),
    Model("names", "embedder", "brings translations of a name together; learns from the Unicode CLDR too"),
)
SHOWN_METRICS = (
    "polyhead_requests_total",
    "polyhead_prompt_tokens_total",
    "polyhead_generated_tokens_total",
    "polyhead_time_to_first_token_seconds_sum",
    "polyhead_inter_token_latency_seconds_sum",
    "polyhead_model_load_duration_seconds",
)


class StepFailed(Exception):
    """A step of the demo did not work; the text says which."""


def main() -> int:
    os.chdir(ROOT)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)
    began = time.monotonic()
    try:
        for model in THREE:
            make(model)
        with server() as (target, metrics_url):
            call_everything(target)
            show_metrics(metrics_url)
    except StepFailed as failure:
        print(f"\ndemo: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    farewell(time.monotonic() - began)
    return 0


def leave(number: int, _frame: object) -> NoReturn:
    """End as an exception does, so that the server ends too."""
    raise SystemExit(128 + number)


# -- train and export


def make(model: Model) -> None:
    heading(f"{model.name}: {model.purpose}")
    if list((MODELS / model.name).glob("*/bundle.json")):
        say(f"{MODELS / model.name} is there already; remove it to make it anew")
        return
    run("train", model.recipe, "--out", str(RUNS / model.recipe))
    run("export", str(RUNS / model.recipe), "--out", str(MODELS / model.name))


# -- serve


@contextmanager
def server() -> Iterator[tuple[str, str]]:
    """A server on free ports, ready and stopped again: its gRPC target and the address of its metrics."""
    heading("Serve")
    port, metrics_port = free_port(), free_port()
    options = ["--models", str(MODELS), "--port", str(port), "--metrics-port", str(metrics_port)]
    LOG.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    show_command("serve", *options)
    with LOG.open("w") as log:
        process = subprocess.Popen([POLYHEAD, "serve", *options], stdout=log, stderr=log)
    try:
        wait_until_ready(process, f"127.0.0.1:{port}")
        say(f"ready after {time.monotonic() - began:.1f} s; its log is in {LOG}")
        yield f"127.0.0.1:{port}", f"http://127.0.0.1:{metrics_port}/metrics"
        heading("Stop")
        stop(process)
    finally:
        process.kill()
        process.wait()


def wait_until_ready(process: "subprocess.Popen[bytes]", target: str) -> None:
    give_up = time.monotonic() + READY_SECONDS
    with Client(target, timeout=1, retry=RetryPolicy(attempts=1)) as client:
        while process.poll() is None and time.monotonic() < give_up:
            try:
                if client.health():
                    return
            except PolyheadError:
                pass  # not listening yet
            time.sleep(0.1)
    raise StepFailed(f"the server did not become ready\n{LOG.read_text()}")


def stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        code = process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        raise StepFailed(f"the server did not stop within {STOP_SECONDS} s\n{LOG.read_text()}") from None
    if code:
        raise StepFailed(f"the server ended with exit code {code}\n{LOG.read_text()}")
    say("SIGTERM, drained, exit code 0")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


# -- call


def call_everything(target: str) -> None:
    os.environ["POLYHEAD_TARGET"] = target
    heading("Which models are there?")
    run("models")
    heading("Generate: streams as tokens come; a seed makes it repeatable")
    prompt = "class Reader:\n    def __init__(self"
    run("generate", prompt, "--max-tokens", "70", "--temperature", "0.4", "--seed", "3")
    heading("Classify")
    texts = ["Vereinigte Staaten", "les îles Féroé", "poniedziałek, 3 marca", "fredag den 13. juni", "दक्षिण अफ़्रीका"]
    run("classify", "--top-k", "2", *texts)
    heading("Embed: the nearest of a few names")
    show_nearest("Germany", ["Allemagne", "Frankreich", "Alemania", "Япония", "Германия", "Niemcy", "Japon"])
    heading("Tokenize")
    run("tokenize", "--model", "python-gpt", "import os")


def show_nearest(query: str, names: list[str]) -> None:
    lines = run("embed", "--json", query, *names, show_output=False).splitlines()
    vectors = [json.loads(line)["embedding"] for line in lines]
    likeness = {name: dot(vectors[0], vector) for name, vector in zip(names, vectors[1:], strict=True)}
    for name, cosine in sorted(likeness.items(), key=lambda pair: -pair[1]):
        print(f"{cosine:6.3f}  {name}")


def dot(left: list[float], right: list[float]) -> float:
    """The cosine of two embeddings, as they have length 1."""
    return sum(a * b for a, b in zip(left, right, strict=True))


def show_metrics(url: str) -> None:
    heading("Metrics (an excerpt)")
    say(url)
    with urllib.request.urlopen(url, timeout=5) as response:  # noqa: S310  # the server just started
        text: str = response.read().decode()
    print("\n".join(line for line in text.splitlines() if line.startswith(SHOWN_METRICS)))


# -- how it looks


def run(*arguments: str, show_output: bool = True) -> str:
    """A `polyhead` command, shown as one would type it; gives its output if that is not shown. Raises StepFailed."""
    show_command(*arguments)
    done = subprocess.run([POLYHEAD, *arguments], stdout=None if show_output else subprocess.PIPE, text=True)
    if done.returncode:
        raise StepFailed(f"`polyhead {shlex.join(arguments)}` failed (exit code {done.returncode}); see above")
    return done.stdout or ""


def show_command(*arguments: str) -> None:
    say(f"$ polyhead {shlex.join(arguments)}")


def say(text: str) -> None:
    print(f"\033[2m{text}\033[0m" if sys.stdout.isatty() else text, flush=True)


def heading(text: str) -> None:
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n== {text}", flush=True)


def farewell(seconds: float) -> None:
    heading(f"All of it took {seconds:.0f} s. Now it is yours:")
    print("  make serve                                        keep the server running, on 127.0.0.1:50051")
    print(
        "  .venv/bin/polyhead classify 'le Royaume-Uni'      call it from another terminal; --help lists all commands"
    )
    print("  curl -s http://127.0.0.1:9464/metrics             what Prometheus reads")


if __name__ == "__main__":
    sys.exit(main())
