"""The command as a process of its own: exit codes, signals, pipes, and what it imports."""

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import pytest

from polyhead.v1 import inference_pb2
from tests.unit.client.scripted_server import Failure, ScriptedServer


@pytest.fixture(autouse=True)
def ctrl_c_is_heard() -> Iterator[None]:
    """Shells let what they start in the background ignore it, and whatever that starts inherits it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)


def start(arguments: list[str], target: str = "127.0.0.1:1") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "polyhead.client", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "POLYHEAD_TARGET": target},
    )


def test_exit_codes_are_0_and_1_and_2(server: ScriptedServer) -> None:
    cases = {("embed", "a"): 0, ("embed", ""): 1, ("embed",): 2, ("--version",): 0}
    processes = {arguments: start(list(arguments), server.target) for arguments in cases}
    outputs = {arguments: process.communicate(timeout=60) for arguments, process in processes.items()}
    assert {arguments: process.returncode for arguments, process in processes.items()} == cases
    assert outputs["embed", ""] == ("", "polyhead: inputs[0]: must not be empty\n")
    assert outputs[("--version",)][0].startswith("polyhead ")


def test_text_comes_while_the_stream_runs_and_ctrl_c_is_quiet(server: ScriptedServer) -> None:
    process = start(["generate", "endless"], server.target)
    assert process.stdout is not None
    assert process.stdout.read(len("endless")) == "endless"
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == 130
    assert server.script.streams_ended.acquire(timeout=10)


def test_ctrl_c_while_it_waits_for_standard_input_is_quiet(server: ScriptedServer) -> None:
    process = start(["embed", "-"], server.target)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("a\n")
    process.stdin.flush()
    assert process.stdout.readline() == "==> a <==\n"  # answered before the input ends
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert process.communicate(timeout=60)[1] == ""


def test_a_reader_that_leaves_is_no_error_message(server: ScriptedServer) -> None:
    process = start(["embed", "-"], server.target)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdin.write("a\n")
    process.stdin.flush()
    process.stdout.readline()
    process.stdout.close()
    process.stdin.write("b\n" * 3)
    process.stdin.close()
    assert process.wait(timeout=60) == 1
    assert process.stderr.read() == ""


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_commands_of_other_parts_get_their_arguments_untouched() -> None:
    done = run_python(
        "import sys; from polyhead.client.cli import main; sys.exit(main(sys.argv[1:]))", "serve", "--help"
    )
    assert done.returncode == 0
    assert "--models" in done.stdout


ONLY_BASE_DEPENDENCIES = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        top = name.split(".")[0]
        if top not in sys.stdlib_module_names | {"polyhead", "grpc", "google", "typing_extensions"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refuse())
from polyhead.client.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_the_client_needs_nothing_but_grpc_and_protobuf(server: ScriptedServer) -> None:
    done = run_python(ONLY_BASE_DEPENDENCIES, "embed", "--target", server.target, "a")
    assert (done.returncode, done.stdout, done.stderr) == (0, "1 dimensions:  97.0000\n", "")


def test_a_command_whose_extra_is_not_installed_names_it() -> None:
    done = run_python(ONLY_BASE_DEPENDENCIES, "serve", "--models", "nowhere")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert 'pip install "polyhead[server]"' in done.stderr


@contextmanager
def talking(target: str, *arguments: str) -> Iterator[tuple["subprocess.Popen[str]", int]]:
    """A conversation whose input is a terminal, and where to type."""
    keyboard, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "polyhead.client", "generate", "--chat", *arguments],
        stdin=terminal,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "POLYHEAD_TARGET": target},
    )
    os.close(terminal)
    try:
        yield process, keyboard
    finally:
        process.kill()
        process.communicate()
        os.close(keyboard)


def said(request: inference_pb2.GenerateRequest) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in request.messages]


def test_a_conversation_keeps_what_was_said_until_ctrl_d(server: ScriptedServer) -> None:
    with talking(server.target, "--system", "Be brief.", "--seed", "1") as (process, keyboard):
        assert process.stdout is not None
        assert process.stderr is not None
        for text in ("one two", "three"):
            os.write(keyboard, f"{text}\n\n".encode())  # an empty line is nothing said
            assert process.stdout.readline() == f"{text}\n"
        os.write(keyboard, b"\x04")
        assert process.wait(timeout=60) == 0
        assert process.stderr.read() == "> > > > > \n"
    first, second = map(said, server.script.requests)
    assert first == [("system", "Be brief."), ("user", "one two")]
    assert second == [*first, ("assistant", "one two"), ("user", "three")]


def test_a_conversation_goes_on_after_a_failure_and_after_ctrl_c(server: ScriptedServer) -> None:
    with talking(server.target) as (process, keyboard):
        assert process.stdout is not None
        assert process.stderr is not None
        server.script.failures.append(Failure(grpc.StatusCode.INVALID_ARGUMENT, "no such thing"))
        os.write(keyboard, b"one\n")
        assert process.stderr.readline() == "> polyhead: no such thing\n"
        os.write(keyboard, b"endless\n")
        assert process.stdout.read(len("endless")) == "endless"
        process.send_signal(signal.SIGINT)
        assert server.script.streams_ended.acquire(timeout=10)
        os.write(keyboard, b"three\n\x04")
        assert process.stdout.read() == "\nthree\n"
        assert process.wait(timeout=60) == 0
    assert said(server.script.requests[-1]) == [("user", "endless"), ("assistant", "endless"), ("user", "three")]


def test_a_conversation_as_json_has_an_object_an_answer(server: ScriptedServer) -> None:
    with talking(server.target, "--json") as (process, keyboard):
        os.write(keyboard, b"one two\nthree\n\x04")
        assert process.stdout is not None
        assert [json.loads(line)["text"] for line in process.stdout] == ["one two", "three"]
        assert process.wait(timeout=60) == 0
