"""Polyhead beside llama.cpp, onnxruntime-genai and transformers: the same decoder, the same prompts, in turns.

    make bench                                           or: python tests/perf/compare.py [--rounds 3] [--only llama polyhead]

A decoder in the shape of SmolLM-135M with random weights goes to every peer in its own format. In each round every
contender runs once, alone on the machine, in a process of its own, again if others took more than a few percent of the
processors meanwhile; ratios are taken within a round and their median is quoted, so that a machine that is slow for a while
is slow for all. What is made is kept in `.bench/` for the next time
(about 3 GB; llama.cpp compiles for some minutes). The tables and the picture go into docs/.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from polyhead.server.runtime.threads import available_cpus

ROOT = Path(__file__).parents[2]
WORK = ROOT / ".bench"
PEERS = Path(__file__).parent / "peers"
DOCUMENT, PICTURE = ROOT / "docs" / "benchmarks.md", ROOT / "docs" / "images" / "peers.png"
POLYHEAD = Path(sys.executable).with_name("polyhead")
THREADS = available_cpus()
PACKAGES = {
    "llama": ("llama-cpp-python", "gguf", "safetensors", "numpy"),
    "genai": ("onnxruntime-genai", "onnx", "onnx_ir", "transformers", "torch==2.13.0"),
    "transformers": ("transformers", "torch==2.13.0"),
}
"""What each peer's own environment in `.bench/` has."""
WITHOUT_AMX = "-U__AMX_TILE__ -U__AMX_INT8__ -U__AMX_BF16__"
"""For the compiler of llama.cpp, which builds for the very processor: many virtual machines announce AMX and end a program that uses it."""
STREAMS, PROMPT, TOKENS = (1, 16), 128, 128
TRIES, MOST_DISTURBANCE = 4, 0.05
BUNDLES = {
    "int8": ("--quantize", "int8"),
    "int8, int8 cache": ("--quantize", "int8", "--cache", "int8"),
    "int4": ("--quantize", "int4"),
}
"""Polyhead's, and how they are exported."""
REFERENCE = "Polyhead int8, int8 cache, in process"
SERVED = "Polyhead int8, int8 cache, over gRPC"
LLAMA, GENAI = ("llama.cpp Q8_0", "llama.cpp Q4_0"), ("onnxruntime-genai int8", "onnxruntime-genai int4")

Figures = dict[str, float]
"""tokens_per_second and time_to_first_token of one run."""


@dataclass(frozen=True)
class Goal:
    """A ratio of one contender to the best of some others within a round, and what it shall be."""

    streams: int
    figure: str
    ours: str
    theirs: tuple[str, ...]
    limit: float

    @property
    def at_least(self) -> bool:
        return self.figure == "tokens_per_second"

    def ratios(self, rows: dict[str, list[Figures]]) -> list[float]:
        """One for each round; none if a contender did not run."""
        if not {self.ours, *self.theirs} <= rows.keys():
            return []
        best = max if self.at_least else min
        others = [
            best(run[self.figure] for run in runs) for runs in zip(*(rows[name] for name in self.theirs), strict=True)
        ]
        return [run[self.figure] / other for run, other in zip(rows[self.ours], others, strict=True)]


GOALS = (
    Goal(16, "tokens_per_second", SERVED, LLAMA, 1.2),
    Goal(16, "tokens_per_second", SERVED, GENAI, 1.5),
    Goal(16, "time_to_first_token", SERVED, LLAMA, 0.7),
    Goal(16, "tokens_per_second", SERVED, (REFERENCE,), 0.9),
    Goal(1, "tokens_per_second", "Polyhead int4, in process", ("llama.cpp Q4_0",), 0.75),
    Goal(1, "tokens_per_second", "Polyhead int4, in process", ("onnxruntime-genai int4",), 1.0),
)
"""What Polyhead is held to."""


@dataclass(frozen=True)
class Contender:
    name: str
    family: str
    """What --only picks: polyhead, llama, genai or transformers."""
    run: Callable[[int], Figures]
    """Takes the number of streams."""


def main(options: argparse.Namespace) -> int:
    prepare(options.only)
    contenders = [one for one in all_contenders() if one.family in options.only]
    results: dict[int, dict[str, list[Figures]]] = {}
    for streams in options.streams:
        rows = results[streams] = {one.name: [] for one in contenders}
        for number in range(options.rounds):
            for one in contenders:
                figures, others = undisturbed(partial(one.run, streams))
                rows[one.name].append(figures)
                disturbed = f" (others took {others:.0%} of the processors)" if others > MOST_DISTURBANCE else ""
                print(f"{streams} streams, round {number + 1}: {one.name}: {line(figures)}{disturbed}", flush=True)
    (WORK / "results.json").write_text(json.dumps(results))
    text = "\n\n".join([machine(), *(table(streams, rows) for streams, rows in results.items()), goals(results)])
    print(f"\n{text}")
    if not options.dry and set(options.only) == {"polyhead", *PACKAGES} and set(options.streams) == set(STREAMS):
        write_into(DOCUMENT, "peers", text)
        draw(results, PICTURE)
    return 0


# -- making what is compared


def prepare(families: list[str]) -> None:
    """Environments, the checkpoint, its bundles and its other formats, as far as they are missing."""
    WORK.mkdir(exist_ok=True)
    for family in families:
        if family in PACKAGES:
            make(WORK / family, partial(make_environment, family))
    checkpoint = WORK / "checkpoint"
    make(
        checkpoint,
        lambda: call(sys.executable, PEERS.parent / "make_checkpoint.py", "--shape=135m", "--out", checkpoint),
    )
    for kind, options in BUNDLES.items():
        model, text = models_of(kind) / "decoder", ("--eval-data", ROOT / "README.md")
        make(model, partial(call, POLYHEAD, "export", checkpoint, "--out", model, *options, *text))
    if set(families) & set(PACKAGES):
        make(WORK / "llama", partial(make_environment, "llama"))  # it has what writes the formats
        formats = WORK / "formats"
        make(formats, lambda: call(python("llama"), PEERS / "formats.py", checkpoint, formats))
    if "genai" in families:
        for kind in ("int8", "int4"):
            make(WORK / f"genai-{kind}", partial(build_genai, kind))


def models_of(kind: str) -> Path:
    """The models folder with one of BUNDLES."""
    return WORK / f"models-{kind.replace(', ', '-').replace(' ', '-')}"


def make(path: Path, recipe: Callable[[], object]) -> None:
    """Call the recipe unless an earlier call is known to have succeeded."""
    done = path.with_name(f"{path.name}.done")
    if not done.exists():
        print(f"making {path.relative_to(ROOT)}", flush=True)
        recipe()
        done.touch()


def make_environment(family: str) -> None:
    call(sys.executable, "-m", "venv", WORK / family)
    install = [python(family), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PACKAGES[family]]
    call("env", f"CFLAGS={WITHOUT_AMX}", f"CXXFLAGS={WITHOUT_AMX}", *install)


def build_genai(precision: str) -> None:
    """By onnxruntime-genai's own builder; accuracy level 4, products of 8-bit integers, is its fastest on a CPU."""
    builder = ["-m", "onnxruntime_genai.models.builder", "-e", "cpu", "-p", precision]
    builder += ["--extra_options", "accuracy_level=4"]
    paths = ["-i", WORK / "formats" / "hf", "-o", WORK / f"genai-{precision}", "-c", WORK / "cache"]
    call(python("genai"), *builder[:6], *paths, *builder[6:])


def python(family: str) -> Path:
    return WORK / family / "bin" / "python"


def call(*command: object) -> str:
    """Standard output. Raises CalledProcessError, after showing what was printed."""
    # OMP_WAIT_POLICY=PASSIVE, say, makes llama.cpp three times as slow at one stream.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment)
    if done.returncode:
        print(done.stdout, done.stderr, file=sys.stderr)
        done.check_returncode()
    return done.stdout


# -- running


def all_contenders() -> list[Contender]:
    def peer(name: str, family: str, script: str, model: Path) -> Contender:
        executable = sys.executable if family == "polyhead" else python(family)
        return Contender(name, family, lambda streams: in_process(executable, PEERS / script, model, streams))

    def engine(kind: str) -> Contender:
        bundle = models_of(kind) / "decoder" / "1"
        return peer(f"Polyhead {kind}, in process", "polyhead", "polyhead_peer.py", bundle)

    served = "int8, int8 cache"
    return [
        Contender(f"Polyhead {served}, over gRPC", "polyhead", partial(over_grpc, models_of(served))),
        *map(engine, BUNDLES),
        peer("llama.cpp Q8_0", "llama", "llama_cpp_peer.py", WORK / "formats" / "q8_0.gguf"),
        peer("llama.cpp Q4_0", "llama", "llama_cpp_peer.py", WORK / "formats" / "q4_0.gguf"),
        peer("onnxruntime-genai int8", "genai", "genai_peer.py", WORK / "genai-int8"),
        peer("onnxruntime-genai int4", "genai", "genai_peer.py", WORK / "genai-int4"),
        peer("transformers fp32", "transformers", "transformers_peer.py", WORK / "formats" / "hf"),
    ]


def undisturbed(run: Callable[[], Figures]) -> tuple[Figures, float]:
    """What a run gave, and the share of the processors' time that others took meanwhile: of a few runs the one that they
    disturbed least, and no more than one where nobody did. The figures themselves decide nothing."""
    runs: list[tuple[Figures, float]] = []
    while len(runs) < TRIES and (not runs or runs[-1][1] > MOST_DISTURBANCE):
        began, busy, own = time.monotonic(), busy_seconds(), own_seconds()
        figures = run()
        others = busy_seconds() - busy - (own_seconds() - own)
        runs.append((figures, max(0.0, others) / (time.monotonic() - began) / (os.cpu_count() or 1)))
    return min(runs, key=lambda one: one[1])


def busy_seconds() -> float:
    """Processor time that all of the machine has spent so far, and that a host took from it; 0 where /proc is missing."""
    try:
        user, nice, system, _, _, *interrupts = map(int, Path("/proc/stat").read_text().splitlines()[0].split()[1:9])
    except OSError:
        return 0.0
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")


def own_seconds() -> float:
    """What this process and those it has waited for have spent."""
    spent = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in spent)


def in_process(executable: object, script: Path, model: Path, streams: int) -> Figures:
    """What a peer's script reports in its last line."""
    size = [f"--streams={streams}", f"--prompt={PROMPT}", f"--tokens={TOKENS}", f"--threads={THREADS}"]
    figures: Figures = json.loads(call(executable, script, model, *size).splitlines()[-1])
    return figures


def over_grpc(models: Path, streams: int) -> Figures:
    """The server, and `polyhead bench` beside it on the same cores."""
    port = 50_951
    options = ["--port", str(port), "--metrics-port", "9951", "--slots", str(streams)]
    with (WORK / "server.log").open("w") as log:
        command = [str(POLYHEAD), "serve", "--models", str(models), *options, "--slot-tokens", str(PROMPT + TOKENS)]
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        target = ["--target", f"127.0.0.1:{port}"]
        wait_until_ready(server, target)
        load = ["--streams", str(streams), "--requests", str(streams), "--temperature", "0", "--json"]
        report: dict[str, Any] = json.loads(call(POLYHEAD, "bench", "generate", *target, *load))
    finally:
        server.terminate()
        server.wait(60)
    first = report["latency"]["time_to_first_token_seconds"]
    return {"tokens_per_second": report["per_second"]["generated_tokens"], "time_to_first_token": first["mean"]}


def wait_until_ready(server: "subprocess.Popen[bytes]", target: list[str]) -> None:
    deadline = time.monotonic() + 60
    while subprocess.run([str(POLYHEAD), "health", *target], capture_output=True).returncode:
        if server.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the server is not ready; see {WORK / 'server.log'}")


# -- saying what came of it


def line(figures: Figures) -> str:
    return f"{figures['tokens_per_second']:.0f} tokens/s, first token after {figures['time_to_first_token']:.2f} s"


def table(streams: int, rows: dict[str, list[Figures]]) -> str:
    """Markdown: medians over the rounds, and the median of each round's ratio to the first contender."""
    lines = [
        f"**{streams} {'stream' if streams == 1 else 'streams'}, {PROMPT} tokens in, {TOKENS} out**",
        "",
        f"| | output tokens/s | times {REFERENCE} | time to first token, s |",
        "|---|---|---|---|",
    ]
    reference = rows.get(REFERENCE)
    for name, runs in rows.items():
        speed = median(run["tokens_per_second"] for run in runs)
        first = median(run["time_to_first_token"] for run in runs)
        pairs = zip(runs, reference or runs, strict=True)
        ratio = median(run["tokens_per_second"] / other["tokens_per_second"] for run, other in pairs)
        lines.append(f"| {name} | {speed:.0f} | {ratio:.2f} | {first:.2f} |")
    return "\n".join(lines)


def goals(results: dict[int, dict[str, list[Figures]]]) -> str:
    """Markdown: each of GOALS, the median of its rounds, whether that is met, and each round."""
    lines = [
        "**What is wanted**, ratios within a round",
        "",
        "| | wanted | median | | by round |",
        "|---|---|---|---|---|",
    ]
    for goal in GOALS:
        if ratios := goal.ratios(results.get(goal.streams, {})):
            middle = median(ratios)
            met = middle >= goal.limit if goal.at_least else middle <= goal.limit
            streams = f"{goal.streams} stream{'s' * (goal.streams > 1)}"
            what = f"{streams}, {goal.figure.replace('_', ' ')}: {goal.ours} to {' or '.join(goal.theirs)}"
            wanted = f"at {'least' if goal.at_least else 'most'} {goal.limit}"
            rounds = ", ".join(f"{ratio:.2f}" for ratio in ratios)
            lines.append(f"| {what} | {wanted} | {middle:.2f} | {'met' if met else '**missed**'} | {rounds} |")
    return "\n".join(lines)


def machine() -> str:
    """Where and with what it was measured."""
    ours = ", ".join(f"{name} {version(name)}" for name in ("polyhead", "onnxruntime"))
    peers = []
    for family, packages in PACKAGES.items():
        if python(family).exists():
            show = f"from importlib.metadata import version; print('{packages[0]}', version('{packages[0]}'))"
            peers.append(call(python(family), "-c", show).strip())
    return f"{cpu_name()}, {THREADS} threads; Python {platform.python_version()}, {ours}, {', '.join(peers)}."


def cpu_name() -> str:
    for row in Path("/proc/cpuinfo").read_text().splitlines():
        if row.startswith("model name"):
            return row.split(":", 1)[1].strip()
    return platform.machine()


def write_into(document: Path, name: str, text: str) -> None:
    """Replace what stands between `<!-- NAME -->` and `<!-- /NAME -->`."""
    before, rest = document.read_text().split(f"<!-- {name} -->\n")
    _, after = rest.split(f"<!-- /{name} -->")
    document.write_text(f"{before}<!-- {name} -->\n\n{text}\n\n<!-- /{name} -->{after}")


def draw(results: dict[int, dict[str, list[Figures]]], path: Path) -> None:
    """Bars of output tokens/s, with each round as a dot."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(results), figsize=(6 * len(results), 3.6), layout="constrained", squeeze=False)
    for axis, (streams, rows) in zip(axes[0], results.items(), strict=True):
        for place, (name, runs) in enumerate(rows.items()):
            speeds = [run["tokens_per_second"] for run in runs]
            axis.barh(place, median(speeds), color="tab:blue" if name.startswith("Polyhead") else "tab:gray")
            axis.plot(speeds, [place] * len(speeds), "k.", markersize=4)
        axis.set_yticks(range(len(rows)), list(rows))
        axis.invert_yaxis()
        axis.set_xlabel("output tokens/s")
        axis.set_title(f"{streams} {'stream' if streams == 1 else 'streams'}, {PROMPT} in, {TOKENS} out", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    families = ["polyhead", *PACKAGES]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--streams", type=int, nargs="+", default=list(STREAMS))
    parser.add_argument("--only", nargs="+", choices=families, default=families, help="these contenders only")
    parser.add_argument(
        "--dry", action="store_true", help="print, and leave docs/ as it is, as a run with a part of it does"
    )
    sys.exit(main(parser.parse_args()))
