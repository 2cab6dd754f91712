import json
import math
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from polyhead.models.checkpoint import load_checkpoint, load_config
from polyhead.train.errors import Interrupted, TrainError, UsageError
from polyhead.train.loop import Result, Resume, train
from polyhead.train.progress import LineReport
from polyhead.train.recipe import Batch
from polyhead.train.settings import CLOCKS, LoopSettings
from tests.unit.train.tiny import CountingRecipe

SETTINGS = LoopSettings(steps=24, eval_every=8, log_every=4, warmup_steps=4, learning_rate=1e-2, device="cpu")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "run"


def weights(recipe: CountingRecipe) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in recipe.model.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, second[name]) for name, value in first.items())


class SignalAt(CountingRecipe):
    """Sends this process a signal while it makes the batch of one step."""

    def __init__(self, step: int, number: signal.Signals) -> None:
        super().__init__()
        self.signal_step, self.number = step, number

    def batch(self, step: int, progress: float = 0.0) -> Batch:
        if step == self.signal_step:
            os.kill(os.getpid(), self.number)
        return super().batch(step)


def test_training_lowers_the_held_out_loss_and_writes_every_file(out: Path) -> None:
    recipe = CountingRecipe()
    before = recipe.evaluate(torch.device("cpu"))["validation_loss"]
    result = train(recipe, replace(SETTINGS, steps=60), out)
    assert result.figures["validation_loss"] < before / 2
    assert sorted(path.name for path in out.iterdir()) == [
        "config.json", "last", "loss.png", "metrics.jsonl", "model.safetensors", "tokenizer.json",
    ]  # fmt: skip
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_seed_gives_the_same_weights_and_another_seed_gives_others(tmp_path: Path) -> None:
    recipes = [CountingRecipe() for _ in range(3)]
    for index, (recipe, seed) in enumerate(zip(recipes, (1, 1, 2), strict=True)):
        train(recipe, replace(SETTINGS, seed=seed), tmp_path / str(index))
    assert same(weights(recipes[0]), weights(recipes[1]))
    assert not same(weights(recipes[0]), weights(recipes[2]))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [0, 7, 12])
def test_an_interrupted_and_resumed_training_is_one_that_was_not_bit_for_bit(
    tmp_path: Path, step: int, number: signal.Signals
) -> None:
    whole = CountingRecipe()
    expected = train(whole, SETTINGS, tmp_path / "whole")
    with pytest.raises(Interrupted, match=rf"step {step + 1} of 24.*the same command goes on") as caught:
        train(SignalAt(step, number), SETTINGS, tmp_path / "parts")
    assert caught.value.exit_code == 130
    resumed = CountingRecipe()
    result = train(resumed, SETTINGS, tmp_path / "parts")
    assert same(weights(whole), weights(resumed))
    assert (result.steps, result.best_step, result.figures) == (expected.steps, expected.best_step, expected.figures)
    assert steps_recorded(tmp_path / "parts") >= steps_recorded(tmp_path / "whole")


def steps_recorded(out: Path) -> set[int]:
    return {json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()}


def test_a_signal_handler_of_the_caller_is_back_after_training(out: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    train(CountingRecipe(), replace(SETTINGS, steps=1), out)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_complete_training_is_not_repeated(out: Path) -> None:
    first = CountingRecipe()
    expected = train(first, SETTINGS, out)
    stamp = (out / "model.safetensors").stat().st_mtime_ns
    second = CountingRecipe()
    result = train(second, SETTINGS, out)
    assert second.evaluations == 0
    assert result.figures == expected.figures
    assert same(weights(first), weights(second))
    assert (out / "model.safetensors").stat().st_mtime_ns == stamp


def test_resume_goes_on_for_more_steps(out: Path) -> None:
    train(CountingRecipe(), SETTINGS, out)
    result = train(CountingRecipe(), replace(SETTINGS, steps=40), out, "require")
    assert result.steps == 40
    assert max(steps_recorded(out)) == 40


@pytest.mark.parametrize(
    ("resume", "settings", "identity", "text"),
    [
        (
            "auto",
            replace(SETTINGS, learning_rate=0.5),
            {},
            r"learning_rate 0.01 there, 0.5 here\); --restart replaces it",
        ),
        ("auto", replace(SETTINGS, steps=40), {}, "steps 24 there, 40 here"),
        ("require", SETTINGS, {"data": "b"}, "data None there, b here"),
    ],
)
def test_another_training_in_the_folder_is_refused_and_the_difference_named(
    out: Path, resume: Resume, settings: LoopSettings, identity: dict[str, str], text: str
) -> None:
    train(CountingRecipe(), SETTINGS, out)
    with pytest.raises(UsageError, match=text):
        train(CountingRecipe(**identity), settings, out, resume)


def test_restart_replaces_another_training(out: Path) -> None:
    train(CountingRecipe(), SETTINGS, out)
    settings = replace(SETTINGS, learning_rate=2e-3, steps=8)
    train(CountingRecipe(), settings, out, "restart")
    assert json.loads((out / "last" / "state.json").read_text())["settings"]["steps"] == 8
    assert steps_recorded(out) == {4, 8}


def test_resume_without_a_state_is_refused(out: Path) -> None:
    with pytest.raises(UsageError, match="nothing to resume"):
        train(CountingRecipe(), SETTINGS, out, "require")


def test_a_foreign_checkpoint_is_not_overwritten(out: Path) -> None:
    out.mkdir()
    (out / "config.json").write_text("{}")
    with pytest.raises(UsageError, match="has a checkpoint but no state"):
        train(CountingRecipe(), SETTINGS, out)
    assert (out / "config.json").read_text() == "{}"


@pytest.mark.parametrize(
    "damage", [lambda text: text[:40], lambda text: "[]", lambda text: text.replace("step", "pets")]
)
def test_a_damaged_state_names_its_file(out: Path, damage: Callable[[str], str]) -> None:
    train(CountingRecipe(), SETTINGS, out)
    path = out / "last" / "state.json"
    path.write_text(damage(path.read_text()))
    with pytest.raises(TrainError, match=r"last/state\.json.*--restart"):
        train(CountingRecipe(), SETTINGS, out)


def test_truncated_tensors_name_their_file(out: Path) -> None:
    train(CountingRecipe(), SETTINGS, out)
    path = out / "last" / "step-24.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(TrainError, match=r"step-24\.safetensors"):
        train(CountingRecipe(), SETTINGS, out)


class Worsening(CountingRecipe):
    """Evaluates to 2, 1, 3, or the same upside down."""

    def __init__(self, higher_is_better: bool) -> None:
        super().__init__()
        self.higher_is_better = higher_is_better
        self.seen: list[dict[str, Tensor]] = []

    def evaluate(self, device: torch.device) -> dict[str, float]:
        self.seen.append(weights(self))
        figure = (2.0, 1.0, 3.0)[len(self.seen) - 1]
        return {"validation_loss": -figure if self.higher_is_better else figure}


@pytest.mark.parametrize("higher_is_better", [False, True])
def test_the_checkpoint_is_the_one_of_the_best_evaluation(out: Path, higher_is_better: bool) -> None:
    recipe = Worsening(higher_is_better)
    result = train(recipe, SETTINGS, out)
    config, model = load_checkpoint(out)
    assert result.best_step == 16
    assert config.quality == result.figures == {"validation_loss": -1.0 if higher_is_better else 1.0}
    assert same(dict(model.state_dict()), recipe.seen[1])
    assert same(weights(recipe), recipe.seen[1])


class Saturated(CountingRecipe):
    def evaluate(self, device: torch.device) -> dict[str, float]:
        return {"validation_loss": 0.0}


def test_of_checkpoints_that_are_equally_good_the_last_is_kept(out: Path) -> None:
    recipe = Saturated()
    assert train(recipe, SETTINGS, out).best_step == 24
    assert same(dict(load_checkpoint(out)[1].state_dict()), weights(recipe))


class Diverging(CountingRecipe):
    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return super().loss(inputs, targets) * math.nan


def test_a_loss_that_is_no_number_ends_the_training_with_advice(out: Path) -> None:
    with pytest.raises(TrainError, match="loss is nan at step 4: lower --learning-rate"):
        train(Diverging(), SETTINGS, out)


class TickingClock:
    """Ten seconds pass each time somebody looks."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 10.0
        return self.now


def run_with_budget(out: Path, seconds: float) -> Result:
    return train(
        CountingRecipe(), replace(SETTINGS, steps=1000, eval_every=1000, max_seconds=seconds), out, clock=TickingClock()
    )


def test_a_time_budget_ends_the_training_evaluated_and_with_the_learning_rate_lowered(out: Path) -> None:
    result = run_with_budget(out, 400.0)
    assert 1 < result.steps < 40
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    rates = [record["learning_rate"] for record in records if "learning_rate" in record]
    assert rates[-1] < 0.3 * SETTINGS.learning_rate
    assert load_config(out).quality == result.figures


def test_a_budget_counts_what_its_clock_counts(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CLOCKS, "processor", TickingClock())
    settings = replace(SETTINGS, steps=60, eval_every=1000, max_seconds=400.0)
    assert train(CountingRecipe(), replace(settings, clock="processor"), out).steps < 40
    assert train(CountingRecipe(), settings, out, "restart").steps == 60


class Attentive(CountingRecipe):
    """Remembers how far the loop said the training was."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[float] = []

    def batch(self, step: int, progress: float = 0.0) -> Batch:
        if step < 1000:  # no evaluation
            self.told.append(progress)
        return super().batch(step)


def test_a_recipe_is_told_how_far_the_training_is_by_steps_or_by_time(out: Path) -> None:
    by_steps, by_time = Attentive(), Attentive()
    train(by_steps, SETTINGS, out)
    assert by_steps.told == [step / 24 for step in range(24)]
    settings = replace(SETTINGS, steps=1000, max_seconds=400.0)
    train(by_time, settings, out, "restart", clock=TickingClock())
    assert by_time.told[0] < 0.1
    assert by_time.told[-1] > 0.8
    assert by_time.told == sorted(by_time.told)


def test_a_training_that_used_up_its_budget_is_complete(out: Path) -> None:
    assert run_with_budget(out, 400.0).steps == run_with_budget(out, 400.0).steps


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_learns_too_and_resumes(out: Path, precision: str) -> None:
    settings = replace(SETTINGS, steps=60, eval_every=20, precision=precision)  # type: ignore[arg-type]
    recipe = CountingRecipe()
    before = recipe.evaluate(torch.device("cpu"))["validation_loss"]
    train(recipe, replace(settings, steps=30), out)
    result = train(CountingRecipe(), settings, out, "require")
    assert result.figures["validation_loss"] < before / 2


def test_lines_tell_step_loss_speed_and_time_left(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(CountingRecipe(), SETTINGS, out, report=LineReport())
    text = capsys.readouterr().err
    assert "step 24/24  loss " in text
    assert " tokens/s  0:00 left" in text
    assert "step 8: validation_loss " in text
