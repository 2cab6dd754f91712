"""The command line in this process, against a real server."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from polyhead.client import DEFAULT_TARGET
from polyhead.client.cli import main
from tests.unit.client.scripted_server import Failure, ScriptedServer, retry_info


@pytest.fixture(autouse=True)
def target(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYHEAD_TARGET", server.target)


@pytest.fixture
def feed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes bytes the standard input."""

    def feed(data: bytes) -> None:
        (tmp_path / "stdin").write_bytes(data)
        monkeypatch.setattr(sys, "stdin", (tmp_path / "stdin").open())

    return feed


def objects(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_generate_prints_the_text_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "one two"]) == 0
    assert capsys.readouterr() == ("one two\n", "")


def test_generate_says_on_a_terminal_how_it_went(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(["generate", "one two", "--seed", "3"]) == 0
    out, err = capsys.readouterr()
    assert out == "one two\n"
    speed, saved = "2 tokens, 3.3 tokens/s, the first after 0.400 s", "1 of 2 prompt tokens cached"
    assert err == f"[generate 1: {speed}; {saved}; end: length; seed 3]\n"
    assert main(["generate", "one two", "--seed", "3", "--prompt-lookup"]) == 0
    assert f"{saved}; 1 of 2 guesses right; end:" in capsys.readouterr().err


def test_generate_as_json_has_the_documented_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--json", "--logprobs", "1", "é two"]) == 0
    out = capsys.readouterr().out
    (answer,) = objects(out)
    assert "é" in out
    assert (answer["text"], answer["token_ids"], answer["finish_reason"]) == ("é two", [0, 1], "length")
    assert answer["logprobs"][0] == {
        "token_id": 1,
        "token": "é",
        "logprob": -0.5,
        "top": [{"token_id": 1, "token": "é", "logprob": -0.5}],
    }
    saved = {"cached_prompt_tokens": 1, "drafted_tokens": 0, "accepted_tokens": 0}
    assert answer["usage"] == {"prompt_tokens": 2, "generated_tokens": 2, **saved}
    assert (answer["sample_index"], answer["prompt_logprobs"]) == (0, [])
    assert all(name.endswith("_seconds") for name in answer["timing"])
    assert (answer["seed"], answer["model"], answer["version"]) == (7, "generate", "1")


def test_chat_says_each_text_as_a_user(server: ScriptedServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--chat", "--system", "Be brief.", "--seed", "3", "one two", "three", "--json"]) == 0
    assert [answer["text"] for answer in objects(capsys.readouterr().out)] == ["one two", "three"]
    sent = [[(message.role, message.content) for message in request.messages] for request in server.script.requests]
    assert sorted(sent) == [[("system", "Be brief."), ("user", text)] for text in ("one two", "three")]
    assert all(request.sampling.seed == 3 and not request.HasField("prompt") for request in server.script.requests)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("generate", "the following arguments are required: TEXT"),
        ("generate --system a b", "--system needs --chat"),
        ("generate --template-option a=1 b", "--template-option needs --chat"),
        (
            "generate --chat --template-option a=b c",
            "argument --template-option: must be NAME=JSON, such as enable_thinking=false or name='\"Ada\"', not 'a=b'",
        ),
        ("generate --chat", "--chat without TEXT needs a terminal; give TEXT, or - to read lines of standard input"),
    ],
)
def test_a_chat_without_what_it_needs_is_wrong_usage(
    arguments: str, complaint: str, capsys: pytest.CaptureFixture[str], feed: Any
) -> None:
    feed(b"")
    with pytest.raises(SystemExit) as caught:
        main(arguments.split())
    assert caught.value.code == 2
    assert capsys.readouterr().err == f"polyhead generate: {complaint} (see polyhead generate --help)\n"


def test_a_conversation_has_one_answer_at_a_time(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    with pytest.raises(SystemExit):
        main(["generate", "--chat", "--samples", "2"])
    assert "--samples needs TEXT" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["generate", "--chat", "--alignment", "out.html"])
    assert "--alignment FILE needs TEXT" in capsys.readouterr().err


def test_generate_sends_every_flag(server: ScriptedServer) -> None:
    flags = (
        "--model m --model-version 2 --temperature 0.5 --top-k 4 --top-p 0.25 --min-p 0.125 --repetition-penalty 1.5"
    )
    more = "--seed 9 --max-tokens 8 --min-tokens 2 --stop a --stop b --stop-token 3 --stop-token 4 --ignore-eos"
    assert main(["generate", *flags.split(), *more.split(), "--logprobs", "0", "hi"]) == 0
    (request,) = server.script.requests
    sampling, stopping = request.sampling, request.stopping
    assert (request.model.name, request.model.version, request.logprobs) == ("m", "2", 0)
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p) == (0.5, 4, 0.25, 0.125)
    assert (sampling.repetition_penalty, sampling.seed) == (1.5, 9)
    assert (stopping.max_tokens, stopping.min_tokens, list(stopping.stop), stopping.ignore_eos) == (
        8,
        2,
        ["a", "b"],
        True,
    )
    assert list(stopping.stop_token_ids) == [3, 4]


def test_generate_sends_what_weighs_tokens_and_how_to_serve(server: ScriptedServer) -> None:
    weights = "--typical-p 0.75 --presence-penalty -1.5 --frequency-penalty 0.5 --logit-bias 5=-100 --logit-bias 7=2.5"
    rest = "--bad-word a --bad-word b --samples 3 --prompt-logprobs 2 --prompt-lookup --priority -4"
    assert main(["generate", *weights.split(), *rest.split(), "hi"]) == 0
    (request,) = server.script.requests
    sampling = request.sampling
    assert (sampling.typical_p, sampling.presence_penalty, sampling.frequency_penalty) == (0.75, -1.5, 0.5)
    assert (dict(sampling.logit_bias), list(sampling.bad_words)) == ({5: -100, 7: 2.5}, ["a", "b"])
    assert (request.samples, request.prompt_logprobs, request.prompt_lookup, request.priority) == (3, 2, True, -4)


def test_generate_sends_a_constraint_from_flag_or_file(server: ScriptedServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("{é}")
    for flags in (
        ["--json-schema", ' {"type": "null"}'],
        ["--json-schema", str(tmp_path / "file")],
        ["--regex", "a+"],
        ["--grammar", str(tmp_path / "file")],
        ["--choice", "yes", "--choice", "no"],
    ):
        assert main(["generate", "hi", *flags]) == 0
    inline, file, regex, grammar, choice = (request.constraint for request in server.script.requests)
    assert (inline.json_schema, file.json_schema, regex.regex, grammar.lark) == (
        ' {"type": "null"}',
        "{é}",
        "a+",
        "{é}",
    )
    assert list(choice.choice.choices) == ["yes", "no"]


def test_samples_are_told_apart_although_their_pieces_come_in_turn(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--samples", "2", "--logprobs", "0", "one two"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "--- sample 0 ---",
        "one two",
        "  -0.5000  'one'             'one' -0.5000",
        "  -0.5000  'two'             'two' -0.5000",
        "--- sample 1 ---",
        "one two (1)",
        "  -0.5000  'one'             'one' -0.5000",
        "  -0.5000  'two'             'two' -0.5000",
        "  -0.5000  '(1)'             '(1)' -0.5000",
    ]
    assert main(["generate", "--samples", "2", "--json", "one two"]) == 0
    answers = objects(capsys.readouterr().out)
    assert [(answer["sample_index"], answer["text"]) for answer in answers] == [(0, "one two"), (1, "one two (1)")]


def test_generate_sends_how_to_search(server: ScriptedServer) -> None:
    assert main(["generate", "--beams", "4", "--length-penalty", "-0.5", "--early-stopping", "hi"]) == 0
    assert main(["generate", "--beams", "2", "hi"]) == 0
    full, plain = (request.beam_search for request in server.script.requests)
    assert (full.width, full.length_penalty, full.early_stopping) == (4, -0.5, True)
    assert (plain.width, plain.HasField("length_penalty"), plain.early_stopping) == (2, False, False)


def test_the_best_answers_of_a_search_have_their_scores(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--beams", "4", "--samples", "3", "one"]) == 0
    titles = ["--- sample 0, score -0.2500 ---", "one", "--- sample 1, score -0.5000 ---", "one (1)"]
    assert capsys.readouterr() == ("\n".join(titles) + "\n", "")
    assert main(["generate", "--beams", "4", "--samples", "3", "--json", "one"]) == 0
    assert [answer["score"] for answer in objects(capsys.readouterr().out)] == [-0.25, -0.5]
    assert main(["generate", "--json", "one"]) == 0
    (plain,) = objects(capsys.readouterr().out)
    assert (plain["score"], plain["alignment"]) == (None, None)


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ("--length-penalty 2", "--length-penalty needs --beams N"),
        ("--early-stopping", "--early-stopping needs --beams N"),
        ("--beams 0", "argument --beams: must be a whole number, 1 or more, not '0'"),
        ("--alignment a.gif", "--alignment must be a file that ends in .png or .html, or -, not 'a.gif'"),
        ("--alignment nowhere/a.png", "--alignment nowhere/a.png: there is no folder nowhere"),
    ],
)
def test_a_search_or_picture_that_can_not_be_is_wrong_usage(
    server: ScriptedServer, flags: str, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["generate", *flags.split(), "hi"])
    assert caught.value.code == 2
    assert capsys.readouterr().err == f"polyhead generate: {complaint} (see polyhead generate --help)\n"
    assert not server.script.requests


def test_an_alignment_is_drawn_under_the_answer_or_is_part_of_the_json(
    server: ScriptedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", "--alignment", "-", "a b"]) == 0
    lines = ["a b", "      <", "      /", "      s", "  a b >", "a ██····", "b ··██··"]
    assert capsys.readouterr().out.splitlines() == [*lines, "  · 0  ░ 0.05  ▒ 0.25  ▓ 0.5  █ 0.75"]
    assert main(["generate", "--alignment", "-", "--json", "a b"]) == 0
    (answer,) = objects(capsys.readouterr().out)
    source = {"source_tokens": ["a", "b", "</s>"], "target_tokens": ["a", "b"]}
    assert answer["alignment"] == {**source, "weights": [[1, 0, 0], [0, 1, 0]]}
    assert all(request.return_alignment for request in server.script.requests)


def test_on_a_terminal_an_alignment_is_gray_and_no_wider_than_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "6")
    assert main(["generate", "--alignment", "-", "a b"]) == 0
    black, white = "\x1b[48;5;232m  ", "\x1b[48;5;255m  "
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:4] == ["  a b", f"a {white}{black}\x1b[0m", f"b {black}{white}\x1b[0m"]
    assert lines[4:9] == ["", "  <", "  /", "  s", "  >"]


def test_pictures_of_several_texts_and_samples_are_numbered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], feed: Any
) -> None:
    for name, arguments, files in (
        ("one.html", ["a b"], ["one.html"]),
        ("texts.html", ["a", "b"], ["texts-1.html", "texts-2.html"]),
        ("best.html", ["a", "--beams", "4", "--samples", "3"], ["best-1.html", "best-2.html"]),
        (
            "both.html",
            ["a", "b", "--samples", "2"],
            ["both-1-1.html", "both-1-2.html", "both-2-1.html", "both-2-2.html"],
        ),
        ("drawn.PNG", ["a"], ["drawn.PNG"]),
    ):
        assert main(["generate", "--alignment", str(tmp_path / name), *arguments]) == 0
        assert sorted(path.name for path in tmp_path.glob(f"{name.partition('.')[0]}*")) == files
    assert capsys.readouterr().err == ""
    feed(b"a\nb c\n")
    assert main(["generate", "--alignment", str(tmp_path / "lines.html"), "-"]) == 0
    assert "c ← c: 1.000" in (tmp_path / "lines-2.html").read_text("utf-8")
    assert (tmp_path / "drawn.PNG").read_bytes().startswith(b"\x89PNG")


def test_a_picture_that_can_not_be_written_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a-2.html").mkdir()
    assert main(["generate", "--alignment", str(tmp_path / "a.html"), "a", "b"]) == 1
    assert capsys.readouterr().err == f"polyhead: input 2: --alignment {tmp_path / 'a-2.html'}: Is a directory\n"


def test_a_picture_as_png_without_matplotlib_says_what_to_install(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SystemExit) as caught:
        main(["generate", "--alignment", str(tmp_path / "a.png"), "a"])
    assert caught.value.code == 2
    assert 'pip install "polyhead[plot]", or take a file that ends in .html, or -' in capsys.readouterr().err


def test_log_probabilities_of_the_prompt_have_a_heading_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--logprobs", "0", "--prompt-logprobs", "0", "one two"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "one two",
        "  -0.5000  'one'             'one' -0.5000",
        "  -0.5000  'two'             'two' -0.5000",
        "of the prompt:",
        "  -0.5000  'two'             'two' -0.5000",
    ]


def test_generate_leaves_to_the_server_what_is_not_said(server: ScriptedServer) -> None:
    assert main(["generate", "hi"]) == 0
    (request,) = server.script.requests
    assert not any(request.HasField(name) for name in ("model", "sampling", "logprobs", "samples", "constraint"))
    assert not request.stopping.ignore_eos


def test_several_prompts_are_told_apart_with_their_log_probabilities(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--logprobs", "1", "one", "two"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "==> one <==",
        "one",
        "  -0.5000  'one'             'one' -0.5000",
        "",
        "==> two <==",
        "two",
        "  -0.5000  'two'             'two' -0.5000",
    ]


def test_classify_aligns_labels_and_draws_bars_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["classify", "abcde"]) == 0
    assert capsys.readouterr().out == "short  0.7500\nlong   0.2500\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(["classify", "abcde", "--top-k", "1"]) == 0
    assert capsys.readouterr().out == f"short  0.7500  {'█' * 18}\n"


def test_classify_as_json_has_all_labels(server: ScriptedServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["classify", "--json", "abcde"]) == 0
    (answer,) = objects(capsys.readouterr().out)
    assert answer["labels"] == [{"label": "short", "score": 0.75}, {"label": "long", "score": 0.25}]
    assert set(answer["timing"]) == {"queue_seconds", "tokenize_seconds", "inference_seconds", "total_seconds"}
    assert not server.script.requests[0].HasField("top_k")


def test_embed_shows_dimensions_and_first_values_or_all_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["embed", "abc"]) == 0
    assert capsys.readouterr().out == "3 dimensions:  97.0000  98.0000  99.0000\n"
    assert main(["embed", "--json", "abc", "d"]) == 0
    assert [answer["embedding"] for answer in objects(capsys.readouterr().out)] == [[97.0, 98.0, 99.0], [100.0]]


def test_truncate_is_sent(server: ScriptedServer) -> None:
    assert main(["embed", "--truncate", "a"]) == main(["classify", "--truncate", "a"]) == 0
    assert [request.truncate for request in server.script.requests] == [True, True]


def test_an_adapter_is_sent(server: ScriptedServer) -> None:
    for command in ("generate", "classify", "embed"):
        assert main([command, "--adapter", "french", "a"]) == main([command, "a"]) == 0
    assert [request.adapter for request in server.script.requests] == ["french", ""] * 3


def test_tokenize_shows_ids_and_places(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tokenize", "a"]) == 0
    assert capsys.readouterr().out == "       0        0:0  <s>\n      97        0:1  a\n"
    assert main(["tokenize", "--no-special-tokens", "--json", "a"]) == 0
    (answer,) = objects(capsys.readouterr().out)
    assert answer["tokens"] == [{"id": 97, "token": "a", "start": 0, "end": 1}]


def test_lines_of_standard_input_are_sent_concurrently_and_answered_in_order(
    feed: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first is answered only when all four have come, so one after the other would never end."""
    feed(b"after 4\nb\r\nc\n\xc3\xa9")
    assert main(["embed", "--json", "-"]) == 0
    embeddings = [answer["embedding"] for answer in objects(capsys.readouterr().out)]
    assert embeddings == [[97.0, 102.0, 116.0], [98.0], [99.0], [233.0]]


def test_concurrency_one_sends_one_at_a_time(
    server: ScriptedServer, feed: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    feed(b"one\ntwo\nthree\n")
    assert main(["generate", "--concurrency", "1", "-", "four"]) == 0
    assert [request.prompt.text for request in server.script.requests] == ["one", "two", "three", "four"]
    assert "==> three <==\nthree\n\n==> four <==\nfour\n" in capsys.readouterr().out


def test_the_error_of_one_line_says_which_after_the_answers_before_it(
    feed: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    feed(b"a\n\nc\n")
    assert main(["embed", "--json", "-"]) == 1
    out, err = capsys.readouterr()
    assert len(objects(out)) == 1
    assert err == "polyhead: input 2: inputs[0]: must not be empty\n"


def test_a_grammar_that_is_not_utf_8_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "grammar").write_bytes(b"start: \xfc")
    with pytest.raises(SystemExit):
        main(["generate", "a", "--grammar", str(tmp_path / "grammar")])
    assert "grammar' is not UTF-8 (byte 0xfc)" in capsys.readouterr().err


def test_standard_input_that_is_not_utf_8_is_refused(feed: Any, capsys: pytest.CaptureFixture[str]) -> None:
    feed(b"Gr\xfc\xdfe\n")
    assert main(["embed", "-"]) == 1
    assert capsys.readouterr().err == (
        "polyhead: standard input is not UTF-8 (byte 0xfc); convert it, for instance with iconv\n"
    )


def test_a_long_or_broken_title_is_one_short_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["embed", "a\nb", "x" * 200]) == 0
    titles = [line for line in capsys.readouterr().out.splitlines() if line.startswith("==>")]
    assert titles == ["==> a b <==", f"==> {'x' * 75}… <=="]


def test_models_is_a_table_with_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "NAME   VERSION  TASK      STATE   ARCHITECTURE  MAX TOKENS  MEMORY   LOADED IN  ALIASES",
        "names  1        classify  ready   encoder       128         1.5 MiB  0.25 s     canary 10 %, stable",
        "torn   2        -         failed  -             -           -        -          -",
        "torn 2 failed: bundle.json: not JSON",
    ]
    assert main(["models", "--json"]) == 0
    ready, failed = objects(capsys.readouterr().out)
    assert (ready["task"], ready["max_tokens"], failed["reason"]) == ("classify", 128, "bundle.json: not JSON")
    assert (ready["aliases"], ready["memory_bytes"]) == ({"canary": 0.1, "stable": 1}, 3 * 2**19)


def test_a_model_is_described_by_all_that_its_bundle_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--describe", "names:1"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "names, version 1",
        "",
        "state                       ready",
        "aliases                     canary 10 %, stable",
        "memory                      about 1.5 MiB",
        "task                        classify",
        "architecture                encoder",
        "parameters                  1,099,511,627,776",
        "quantization                int8",
        "same answer in any traffic  yes",
        "licence                     apache-2.0",
        "labels                      long, short",
        "size of its files           2 KiB",
        "",
        "limits",
        "  max tokens       128",
        "  vocabulary size  30,000",
        "  padded lengths   64, 128",
        "",
        "adapters",
        "  formal  rank 8",
        "  french  rank 16",
        "",
        "quality, on held-out data",
        "  accuracy  0.91",
        "",
        "differences between torch and the graph",
        "  probabilities  1 × 16  3.0e-07  at most 5e-05",
        "",
        "made with",
        "  torch  2.13",
    ]
    assert main(["models", "--describe", "names", "--json"]) == 0
    (described,) = objects(capsys.readouterr().out)
    assert described["bundle"]["quality"] == {"accuracy": 0.91}


def test_models_are_loaded_unloaded_and_reloaded(server: ScriptedServer, capsys: pytest.CaptureFixture[str]) -> None:
    for flag, named in (("--load", "names:1"), ("--reload", "names"), ("--unload", "names:2")):
        assert main(["models", flag, named]) == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()] == ["NAME", "names", "NAME", "names", "unloaded"]
    sent = [(type(request).__name__, request.name, request.version) for request in server.script.requests]
    assert sent == [
        ("LoadModelRequest", "names", "1"),
        ("ReloadModelRequest", "names", ""),
        ("UnloadModelRequest", "names", "2"),
    ]


def test_a_server_that_allows_no_model_control_says_which_setting_does(
    server: ScriptedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.script.failures.append(Failure(grpc.StatusCode.PERMISSION_DENIED, "the server's --allow-model-control"))
    assert main(["models", "--unload", "names"]) == 1
    assert capsys.readouterr().err == "polyhead: the server's --allow-model-control\n"


@pytest.mark.parametrize("named", ["", ":1", "names:"])
def test_a_model_to_load_is_a_name_or_a_name_and_a_version(named: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["models", "--load", named])
    assert end.value.code == 2
    assert "must be NAME or NAME:VERSION" in capsys.readouterr().err


def test_health_is_its_exit_code(server: ScriptedServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["health"]) == 0
    server.health.set("names", health_pb2.HealthCheckResponse.NOT_SERVING)
    assert main(["health", "--model", "names"]) == 1
    assert main(["health", "--model", "names", "--json"]) == 1
    assert capsys.readouterr().out == 'serving\nnot serving\n{"serving": false}\n'


@pytest.mark.parametrize(
    ("failure", "line"),
    [
        (Failure(grpc.StatusCode.INVALID_ARGUMENT, "top_p: 7"), "top_p: 7"),
        (Failure(grpc.StatusCode.NOT_FOUND, "no model x"), "no model x; `polyhead models` lists what the server has"),
        (
            Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", (retry_info(3600),)),
            "full; try again in 3.6e+03 s, or send less at once (--concurrency)",
        ),
        (
            Failure(grpc.StatusCode.DEADLINE_EXCEEDED),
            "the answer was not complete in time; allow more seconds with --timeout",
        ),
        (
            Failure(grpc.StatusCode.INTERNAL, "something\nbroke"),
            "something broke; the server's log has more about request ID",
        ),
    ],
)
def test_a_failure_is_one_line_that_says_what_to_do(
    server: ScriptedServer, capsys: pytest.CaptureFixture[str], failure: Failure, line: str
) -> None:
    server.script.failures.append(failure)
    assert main(["generate", "a"]) == 1
    (request,) = server.script.requests
    assert capsys.readouterr() == ("", f"polyhead: {line.replace('ID', request.request_id)}\n")


def test_an_error_does_not_continue_a_half_written_answer(
    server: ScriptedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.script.failures.append(Failure(grpc.StatusCode.UNAVAILABLE, "gone", after=1))
    assert main(["generate", "one two"]) == 1
    out, err = capsys.readouterr()
    assert out == "one\n"
    assert err.startswith("polyhead: gone; check that a server runs there")


def test_nobody_at_the_target_says_how_to_start_a_server(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["health", "--target", "127.0.0.1:1"]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "--target HOST:PORT, `polyhead serve`" in err


def test_a_timeout_ends_the_call(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--timeout", "0.2", "--json", "endless"]) == 1
    assert "--timeout" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        ([], "polyhead: the following arguments are required: COMMAND (see polyhead --help)"),
        (["embed"], "polyhead embed: the following arguments are required: TEXT (see polyhead embed --help)"),
        (["embed", "a", "--timeout", "0"], "must be a number of seconds above 0, not '0'"),
        (["embed", "a", "--timeout", "soon"], "must be a number of seconds above 0, not 'soon'"),
        (["embed", "a", "--concurrency", "0"], "must be a whole number, 1 or more, not '0'"),
        (["generate", "a", "--top-k", "-1"], "must be a whole number, 0 or more, not '-1'"),
        (["generate", "a", "--temperature", "hot"], "argument --temperature: invalid float value: 'hot'"),
        (["generate", "a", "--samples", "0"], "must be a whole number, 1 or more, not '0'"),
        (["generate", "a", "--logit-bias", "5"], "must be ID=VALUE, such as 42=-100, not '5'"),
        (["generate", "a", "--logit-bias", "a=1"], "must be ID=VALUE, such as 42=-100, not 'a=1'"),
        (["generate", "a", "--grammar", "/no/file"], "argument --grammar: can't read '/no/file': No such file"),
        (["generate", "a", "--json-schema", "/no/file"], "argument --json-schema: can't read '/no/file': No such file"),
        (["generate", "a", "--regex", "a", "--choice", "b"], "argument --choice: not allowed with argument --regex"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_two(
    argv: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    err = capsys.readouterr().err
    assert caught.value.code == 2
    assert line in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        (
            "generate",
            "--temperature --top-k --top-p --min-p --repetition-penalty --seed --max-tokens --min-tokens --stop "
            "--stop-token",
        ),
        (
            "generate",
            "--samples --typical-p --presence-penalty --frequency-penalty --logit-bias --bad-word --prompt-logprobs "
            "--json-schema --regex --grammar --choice --prompt-lookup --priority --adapter --chat --system "
            "--template-option",
        ),
        ("classify", "--top-k --truncate --adapter --model --model-version --concurrency"),
        ("embed", "--truncate --adapter --json --target --timeout"),
        ("tokenize", "--no-special-tokens"),
        ("models", "--json --target --timeout --describe --load --unload --reload"),
        (
            "bench generate",
            "--streams --rate --trace --requests --seconds --warmup --seed --prompt-tokens --max-tokens --shared-prefix "
            "--slo-ttft --slo-itl --temperature --json --png --target --timeout --model",
        ),
        ("bench classify", "--concurrency --rate --inputs-per-request --tokens --words --texts --truncate"),
        ("bench embed", "--concurrency --rate --inputs-per-request --tokens --words --texts --truncate"),
        ("health", "--model --json"),
    ],
)
def test_help_is_complete(command: str, flags: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*command.split(), "--help"])
    out = capsys.readouterr().out
    assert caught.value.code == 0
    assert all(flag in out for flag in flags.split())
    assert DEFAULT_TARGET in " ".join(out.split())


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    out = capsys.readouterr().out
    commands = ["generate", "classify", "embed", "tokenize", "models", "health", "bench", "train", "export", "serve"]
    assert [name for name in commands if f"\n    {name} " not in out] == []


def test_a_terminal_that_knows_neither_blocks_nor_accents_still_gets_its_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written = io.BytesIO()
    terminal = io.TextIOWrapper(written, encoding="ascii")
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdout", terminal)
    assert main(["classify", "abcde", "--top-k", "1"]) == 0
    assert main(["generate", "é"]) == 0
    assert written.getvalue() == b"short  0.7500\n\\xe9\n"


def test_help_says_that_beams_are_no_more_than_slots(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["generate", "--help"])
    assert "up to 32 and no more than the model has slots" in " ".join(capsys.readouterr().out.split())
