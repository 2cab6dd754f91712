"""`polyhead bench` against a real gRPC server that answers, fails and waits as scripted."""

import asyncio
import itertools
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from polyhead.client.bench import progress as progress_module
from polyhead.client.bench.workload import arrivals
from polyhead.client.cli import main
from tests.unit.client.bench_server import MAX_TOKENS, VOCABULARY, BenchServer

SMALL = ("--prompt-tokens", "8", "--max-tokens", "4")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[BenchServer]:
    server = BenchServer()
    monkeypatch.setenv("POLYHEAD_TARGET", server.target)
    yield server
    server.stop()


@pytest.fixture
def bench(server: BenchServer, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs `polyhead bench … --json` and returns the report."""

    def bench(*arguments: str, code: int = 0) -> dict[str, Any]:
        assert main(["bench", *arguments, "--json"]) == code
        out, err = capsys.readouterr()
        assert err == ""
        report: dict[str, Any] = json.loads(out)
        return report

    return bench


def counts(report: dict[str, Any]) -> tuple[int, ...]:
    requests = report["requests"]
    return tuple(requests[name] for name in ("sent", "completed", "rejected", "failed"))


def test_a_closed_loop_keeps_its_streams_busy_and_the_warm_up_out_of_the_figures(
    server: BenchServer, bench: Any
) -> None:
    """No answer begins before 4 requests are there, so fewer at once would never end."""
    server.script.together = threading.Barrier(4)
    report = bench("generate", *SMALL, "--streams", "4", "--requests", "8")
    assert counts(report) == (8, 8, 0, 0)
    assert (report["prompt_tokens"], report["generated_tokens"]) == (64, 32)
    ids = sorted(server.script.ids())
    assert ids == sorted([f"bench-0-warm-up-{n}" for n in range(4)] + [f"bench-0-{n}" for n in range(8)])


def test_requests_are_what_was_asked_for(server: BenchServer, bench: Any) -> None:
    bench(
        "generate",
        *SMALL,
        "--requests",
        "20",
        "--warmup",
        "0",
        "--temperature",
        "0.5",
        "--top-k",
        "3",
        "--logprobs",
        "1",
    )
    requests = server.script.requests
    assert {(r.model.name, r.model.version) for r in requests} == {("gpt", "1")}
    assert {(r.sampling.temperature, r.sampling.top_k, r.logprobs) for r in requests} == {(0.5, 3, 1)}
    assert {(r.stopping.max_tokens, r.stopping.ignore_eos) for r in requests} == {(4, True)}
    prompts = [tuple(r.prompt.token_ids.ids) for r in requests]
    assert {len(prompt) for prompt in prompts} == {8}
    assert len(set(prompts)) == len({r.sampling.seed for r in requests}) == 20
    assert max(token for prompt in prompts for token in prompt) == VOCABULARY - 1


def test_the_same_seed_sends_the_same_requests_whatever_the_load(server: BenchServer, bench: Any) -> None:
    def sent(*arguments: str) -> dict[str, bytes]:
        server.script.requests.clear()
        bench("generate", "--prompt-tokens", "4-40", "--max-tokens", "1-9", "--requests", "12", *arguments)
        return {r.request_id: r.SerializeToString(deterministic=True) for r in server.script.requests}

    measured = {f"bench-7-{n}" for n in range(12)}
    closed, poisson = sent("--seed", "7", "--streams", "3"), sent("--seed", "7", "--rate", "500")
    assert measured <= closed.keys()
    assert {name: closed[name] for name in measured} == {name: poisson[name] for name in measured}
    assert set(closed.values()).isdisjoint(sent("--seed", "8").values())


def test_prompts_share_a_prefix_if_asked(server: BenchServer, bench: Any) -> None:
    bench("generate", *SMALL, "--requests", "5", "--shared-prefix", "6")
    prompts = [tuple(r.prompt.token_ids.ids) for r in server.script.requests]
    assert len({prompt[:6] for prompt in prompts}) == 1
    assert len({prompt[6:] for prompt in prompts}) > 5


def test_rejections_and_errors_are_counted_once_each_and_not_sent_again(server: BenchServer, bench: Any) -> None:
    server.script.failures = {
        "bench-0-1": grpc.StatusCode.RESOURCE_EXHAUSTED,
        "bench-0-3": grpc.StatusCode.RESOURCE_EXHAUSTED,
        "bench-0-5": grpc.StatusCode.INTERNAL,
    }
    report = bench("generate", *SMALL, "--requests", "10", "--slo-ttft", "60", "--slo-itl", "60")
    assert counts(report) == (10, 7, 2, 1)
    assert report["requests"]["errors"] == [{"code": "INTERNAL", "requests": 1, "message": "scripted"}]
    assert (report["goodput"]["requests"], report["goodput"]["share"]) == (7, 0.7)
    assert report["latency"]["rejection_seconds"]["count"] == 2
    assert report["latency"]["time_to_first_token_seconds"]["count"] == 7
    assert len(server.script.requests) == 16 + 10


def test_times_are_ordered_and_the_servers_are_passed_on(bench: Any) -> None:
    report = bench("generate", *SMALL, "--requests", "6", "--streams", "2")
    latency = report["latency"]
    assert latency["inter_token_latency_seconds"]["count"] == 6 * 3
    assert 0 < latency["time_to_first_token_seconds"]["max"] < latency["latency_seconds"]["max"]
    assert latency["latency_seconds"]["max"] <= report["duration_seconds"] + 0.5
    server = {name: times["p50"] for name, times in report["server"].items()}
    assert server == {
        "queue_seconds": 0.25,
        "tokenize_seconds": 0.125,
        "inference_seconds": 0.5,
        "time_to_first_token_seconds": 0.375,
        "total_seconds": 0.75,
    }


def test_an_open_loop_sends_whether_or_not_anything_is_answered(server: BenchServer, bench: Any) -> None:
    """No answer begins before all 9 requests are there."""
    server.script.together = threading.Barrier(9)
    report = bench("generate", *SMALL, "--rate", "1000", "--requests", "9", "--warmup", "0")
    assert counts(report) == (9, 9, 0, 0)
    assert report["generator"]["sent_late_seconds"]["count"] == 9


def test_seconds_bound_every_kind_of_load(bench: Any, tmp_path: Path) -> None:
    assert counts(bench("generate", *SMALL, "--seconds", "0.2", "--streams", "1"))[0] >= 1
    due = itertools.takewhile(lambda job: job.due < 0.2, arrivals("0", 100.0))
    assert counts(bench("generate", *SMALL, "--seconds", "0.2", "--rate", "100"))[0] == len(list(due))
    trace = tmp_path / "trace.csv"
    trace.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n0,5,2\n0.5,6,3\n30,7,4\n")
    assert counts(bench("generate", "--trace", str(trace), "--seconds", "1", "--trace-scale", "5")) == (2, 2, 0, 0)


def test_a_trace_decides_arrivals_and_lengths(server: BenchServer, bench: Any, tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n10,5,2\n10.1,90,3\n10.2,7,4\n")
    report = bench("generate", "--trace", str(trace), "--trace-clip", "--warmup", "0")
    requests = sorted(server.script.requests, key=lambda r: r.request_id)
    lengths = [(len(r.prompt.token_ids.ids), r.stopping.max_tokens) for r in requests]
    assert lengths == [(5, 2), (MAX_TOKENS - 3, 3), (7, 4)]
    assert report["duration_seconds"] >= 0.2
    assert report["settings"]["trace"] == {"file": "trace.csv", "scale": 1.0, "clip": True}


def test_a_stream_without_a_finish_reason_is_lost_data(server: BenchServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.script.cut_short = True
    assert main(["bench", "generate", *SMALL, "--requests", "3", "--warmup", "0"]) == 1
    out = capsys.readouterr().out
    assert "no request was completed" in out
    assert "  DATA_LOSS" in out


def test_what_goes_wrong_in_the_warm_up_ends_the_run(server: BenchServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.script.failures = {"bench-0-warm-up-0": grpc.StatusCode.UNAVAILABLE}
    assert main(["bench", "generate", *SMALL, "--requests", "3"]) == 1
    assert capsys.readouterr().err.startswith("polyhead: scripted; check that a server runs there")
    assert "bench-0-0" not in server.script.ids()


@pytest.mark.parametrize("task", ["classify", "embed"])
def test_classify_and_embed_send_tokens_words_or_the_lines_of_a_file(
    task: str, server: BenchServer, bench: Any, tmp_path: Path
) -> None:
    load = (task, "--requests", "3", "--concurrency", "1", "--warmup", "0", "--inputs-per-request", "2")
    report = bench(*load, "--tokens", "5")
    assert (counts(report), report["inputs"], report["prompt_tokens"]) == ((3, 3, 0, 0), 6, 30)
    assert "time_to_first_token_seconds" not in report["latency"]
    assert {len(given.token_ids.ids) for r in server.script.requests for given in r.inputs} == {5}
    assert bench(*load, "--words", "7")["prompt_tokens"] == 42
    texts = tmp_path / "texts"
    texts.write_text("one\n\ntwo three\nfour\n", "utf-8")
    server.script.requests.clear()
    report = bench(*load, "--texts", str(texts), "--truncate")
    assert report["settings"]["texts"] == 3
    inputs = [given.text for r in server.script.requests for given in r.inputs]
    assert inputs == ["one", "two three", "four"] * 2
    assert {r.truncate for r in server.script.requests} == {True}


def test_the_table_says_what_was_measured(server: BenchServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "embed", "--requests", "5", "--rate", "1000"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"polyhead bench embed: pairs 1 at {server.target}"
    assert lines[1] == "open loop, 1000 requests/s, 1 input each, of 32 tokens"
    assert any(line.startswith("requests") and line.endswith("of 5 sent") for line in lines)


def test_a_picture_is_saved(server: BenchServer, bench: Any, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra [plot] is not installed")
    path = tmp_path / "picture"
    assert counts(bench("embed", "--requests", "3", "--png", str(path)))[1] == 3
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("generate --prompt-tokens 60 --max-tokens 5", "of 60 + 5 tokens are too long for the model, which takes 64"),
        ("generate --trace nowhere.csv", "nowhere.csv: No such file or directory"),
        ("generate --trace t.csv --max-tokens 5", "--trace has lengths of its own"),
        ("generate --trace-scale 2", "give one"),
        ("generate --shared-prefix 65", "a shared prefix of 65 tokens is longer than what the model takes, 64"),
        ("embed --tokens 65", "inputs of 65 tokens are too long for the model, which takes 64; lower --tokens"),
        ("embed --texts nowhere.txt", "nowhere.txt: No such file or directory"),
        ("embed --model gpt", "model gpt does not embed; `polyhead models` shows what does"),
        ("embed --png nowhere/a.png", "--png nowhere/a.png: there is no folder nowhere"),
    ],
)
def test_what_does_not_go_together_is_one_line_and_exit_code_two(
    arguments: str, message: str, server: BenchServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *arguments.split()]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err
    assert server.script.requests == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "the following arguments are required: TASK"),
        ("generate --rate 3 --streams 2", "not allowed with argument --rate"),
        ("generate --rate inf", "argument --rate: must be a number above 0, not 'inf'"),
        ("generate --seconds inf", "argument --seconds: must be a number above 0, not 'inf'"),
        ("embed --timeout inf", "argument --timeout: must be a number above 0, not 'inf'"),
        ("generate --requests 0", "argument --requests: must be a whole number, 1 or more, not '0'"),
        ("generate --prompt-tokens 9-3", "argument --prompt-tokens: lengths must be 1 or more and not fall, not 9-3"),
        ("embed --tokens 3 --words 3", "not allowed with argument --tokens"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_two(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["bench", *arguments.split()])
    err = capsys.readouterr().err
    assert (caught.value.code, err.count("\n")) == (2, 1)
    assert message in err


@pytest.mark.parametrize(
    ("models", "message"),
    [
        (["names"], "the server has no models that generate; `polyhead models` shows what it has"),
        (["gpt", "gpt2"], "the server has 2 models that generate; choose one of gpt, gpt2 with --model"),
    ],
)
def test_without_a_model_there_must_be_exactly_one(
    models: list[str], message: str, server: BenchServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.script.models = models
    assert main(["bench", "generate"]) == 2
    assert capsys.readouterr().err == f"polyhead bench generate: {message}\n"


def test_a_picture_without_matplotlib_names_the_extra_before_anything_is_sent(
    server: BenchServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["bench", "generate", "--png", "a.png"]) == 2
    err = capsys.readouterr().err
    assert (err.count("\n"), 'pip install "polyhead[plot]"' in err) == (1, True)
    assert server.script.requests == []


def test_an_option_that_fits_no_request_is_one_line(server: BenchServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "generate", "--top-k", "99999999999", "--warmup", "0"]) == 1
    err = capsys.readouterr().err
    assert (err.count("\n"), err.startswith("polyhead: sampling.top_k: does not fit")) == (1, True)
    assert server.script.requests == []


@pytest.mark.parametrize(
    ("terminal", "line"), [(True, "\r\033[K0 s: 3 of 9 requests"), (False, "0 s: 3 of 9 requests")]
)
async def test_progress_is_told_while_requests_end(
    terminal: bool, line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Done(list[int]):
        asked = asyncio.Event()

        def __len__(self) -> int:
            self.asked.set()
            return super().__len__()

    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    monkeypatch.setattr(progress_module, "TERMINAL_SECONDS" if terminal else "LOG_SECONDS", 0.0)
    done = Done([1, 2, 3])
    async with asyncio.timeout(10), progress_module.progress(done, 9):
        await done.asked.wait()
    assert capsys.readouterr().err.startswith(line)
