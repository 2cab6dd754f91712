import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from polyhead.train.__main__ import RECIPES, main


def test_the_recipes_are_listed_without_importing_torch(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in RECIPES)
    code = "import sys; from polyhead.train.__main__ import main; main(['--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=environment(), check=False).returncode == 0


@pytest.mark.parametrize(
    ("argv", "text"), [([], "usage: polyhead train RECIPE"), (["gtp"], "no recipe 'gtp'; there are gpt, ")]
)
def test_no_recipe_and_a_wrong_one_are_usage_errors(
    capsys: pytest.CaptureFixture[str], argv: list[str], text: str
) -> None:
    assert main(argv) == 2
    assert text in capsys.readouterr().err


def test_a_recipe_lists_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gpt", "--help"]) == 0
    assert "--kv-heads" in capsys.readouterr().out


def test_a_training_computes_with_as_many_threads_as_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[int] = []
    monkeypatch.setattr("torch.set_num_threads", asked.append)
    assert main(["gpt", "--threads=3", "--data", str(tmp_path / "none")]) == 1
    assert asked == [3]
    assert main(["seq2seq", "--threads=0"]) == 2
    assert "--threads must be at least 1, not 0" in capsys.readouterr().err


def test_a_clock_without_a_budget_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["seq2seq", "--preset=sentences", "--clock=processor"]) == 2
    assert "--clock is what --max-seconds counts, and there is none" in capsys.readouterr().err


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "OMP_NUM_THREADS": "1"}


def test_ctrl_c_saves_the_state_tells_how_to_go_on_and_exits_130(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("To be, or not to be, that is the question.\n" * 50)
    model = ["--tokenizer=character", "--layers=1", "--heads=2", "--kv-heads=2", "--width=32", "--context=16"]
    command = ["gpt", "--data=text.txt", "--out=run", *model, "--steps=1000000", "--device=cpu"]
    process = subprocess.Popen(
        [sys.executable, "-m", "polyhead.train", *command],
        cwd=tmp_path,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert process.stderr.readline().startswith("step ")  # it is in its loop
    process.send_signal(signal.SIGINT)
    assert "the state is in run/last: the same command goes on from there" in process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert (tmp_path / "run" / "last" / "state.json").exists()
