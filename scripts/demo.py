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
from operator import mul
from pathlib import Path
from typing import NoReturn

from polyhead.client import Client, PolyheadError, RetryPolicy

ROOT = Path(__file__).parents[1]
RUNS, MODELS, LOG = Path("runs/demo"), Path("models"), Path("runs/demo/server.log")
POLYHEAD = str(Path(sys.executable).with_name("polyhead"))
READY_SECONDS, STOP_SECONDS = 60, 40


# What is trained with `polyhead train RECIPE` and served as NAME.
THREE = (
    ("gpt", "python-gpt", "continues Python; learns from the source of Python's standard library"),
    ("classifier", "language", "tells the language of a text; learns from the names in the Unicode CLDR"),
    ("embedder", "names", "brings translations of a name together; learns from the Unicode CLDR too"),
)
SHOWN_METRICS = tuple(
    f"polyhead_{name}"
    for name in ("requests_total", "generated_tokens_total", "time_to_first_token_seconds_sum", "model_info")
)


class StepFailed(Exception):
    """A step of the demo did not work; the text says which."""


def main() -> int:
    os.chdir(ROOT)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)
    began = time.monotonic()
    try:
        training = train_all()
        export_all()
        with server() as (target, metrics_url):
            call_everything(target)
            show_metrics(metrics_url)
    except StepFailed as failure:
        print(f"\ndemo: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    farewell(time.monotonic() - began, training)
    return 0


def leave(number: int, _frame: object) -> NoReturn:
    """End as an exception does, so that the server ends too."""
    raise SystemExit(128 + number)


def train_all() -> float:
    """Train side by side what has no model yet, and show one after the other; returns how many seconds it took.

    Models this small don't fill two cores with one training: torch is as fast with one thread, so each gets its share.
    """
    began = time.monotonic()
    RUNS.mkdir(parents=True, exist_ok=True)
    threads = str(max(1, (os.cpu_count() or 1) // len(THREE)))
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "PYTHONUNBUFFERED": "1"}
    trainings: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for recipe, name, _ in THREE:
            if not exported(name):
                with log_of(recipe).open("wb") as log:
                    trainings[recipe] = subprocess.Popen(
                        train_command(recipe), stdout=log, stderr=subprocess.STDOUT, env=environment
                    )
        for recipe, name, purpose in THREE:
            heading(f"{name}: {purpose}")
            if recipe in trainings:
                follow(recipe, trainings[recipe])
            else:
                say(f"{MODELS / name} is there already; remove it to make it anew")
    finally:
        for training in trainings.values():
            training.terminate()  # it saves its state; one that has ended doesn't mind
            training.wait()
    return time.monotonic() - began


def export_all() -> None:
    for recipe, name, _ in THREE:
        if not exported(name):
            run("export", str(RUNS / recipe), "--out", str(MODELS / name))


def exported(name: str) -> bool:
    return any((MODELS / name).glob("*/bundle.json"))


def log_of(recipe: str) -> Path:
    return RUNS / f"{recipe}.log"


def train_command(recipe: str) -> list[str]:
    return [POLYHEAD, "train", recipe, "--out", str(RUNS / recipe)]


def follow(recipe: str, training: "subprocess.Popen[bytes]") -> None:
    """Show what a training has printed and prints until it ends. Raises StepFailed if it fails."""
    show_command(*train_command(recipe)[1:])
    with log_of(recipe).open(encoding="utf-8", errors="replace") as log:
        while True:
            ended = training.poll() is not None  # before reading, so that its last words are read too
            print(log.read(), end="", flush=True)
            if ended:
                break
            time.sleep(0.5)
    if training.returncode:
        raise StepFailed(f"`polyhead train {recipe}` failed (exit code {training.returncode}); see above")


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
    # Embeddings have length 1, so their product is the cosine.
    likeness = {name: sum(map(mul, vectors[0], vector)) for name, vector in zip(names, vectors[1:], strict=True)}
    for name, cosine in sorted(likeness.items(), key=lambda pair: -pair[1]):
        print(f"{cosine:6.3f}  {name}")


def show_metrics(url: str) -> None:
    heading("Metrics (an excerpt)")
    say(url)
    with urllib.request.urlopen(url, timeout=5) as response:  # noqa: S310  # the server just started
        text: str = response.read().decode()
    print("\n".join(line for line in text.splitlines() if line.startswith(SHOWN_METRICS)))


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


def farewell(seconds: float, training: float) -> None:
    heading(f"All of it took {seconds:.0f} s, {training:.0f} of them training. Now it is yours:")
    print("  make serve                                        keep the server running, on 127.0.0.1:50051")
    print(
        "  .venv/bin/polyhead classify 'le Royaume-Uni'      call it from another terminal; --help lists all commands"
    )
    print("  curl -s http://127.0.0.1:9464/metrics             what Prometheus reads")


if __name__ == "__main__":
    sys.exit(main())
