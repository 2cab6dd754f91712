"""The training loop of every recipe.

    recipe  model, batch(step), loss(*tensors), evaluate(device)
    train() AdamW · warm-up, then cosine · clipping · mixed precision on a GPU · evaluation · best checkpoint · state

Reproducible: batches and dropout depend on the seed and the step alone, so a training that was interrupted and resumed
gives the weights of one that was not: bit for bit on a CPU, but for rounding, some 1e-8 of a loss, where torch's recurrent
layers have a part, whose sums may run in another order each time. The exception is a time budget that runs out before the
steps do: how far a training gets then depends on the machine.
"""

import math
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Literal

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from polyhead.models.checkpoint import HELD_OUT_FILE, SOURCE_TOKENIZER_FILE, save_checkpoint
from polyhead.train.errors import Interrupted, TrainError, UsageError
from polyhead.train.metrics import append_record, draw_curve, forget_after, read_records
from polyhead.train.progress import ProgressReport, Status, make_report
from polyhead.train.recipe import Recipe
from polyhead.train.settings import (
    CLOCKS,
    LoopSettings,
    choose_device,
    choose_precision,
    learning_rate,
    make_optimizer,
    progress,
    step_seed,
)
from polyhead.train.state import Best, State, load_state, restore_tensors, save_state

Resume = Literal["auto", "require", "restart"]
"""auto: go on where the folder's training has the same settings, begin where there is none. require: there must be one,
and only its steps may differ. restart: begin anew whatever is there."""

REMEDY = "lower --learning-rate"

FREE_TO_CHANGE = frozenset({"eval_every", "log_every", "max_seconds", "clock", "device"})
"""Settings that don't change what a step does, so a training may go on with others."""


@dataclass(frozen=True)
class Result:
    """What a training came to. The recipe's model has the best weights."""

    steps: int
    seconds: float
    best_step: int
    figures: dict[str, float]
    """Of the best evaluation."""


def train(
    recipe: Recipe,
    settings: LoopSettings,
    out: Path,
    resume: Resume = "auto",
    report: ProgressReport | None = None,
    clock: Callable[[], float] | None = None,
) -> Result:
    """Train, and leave in `out` the best checkpoint, `last/`, `metrics.jsonl` and `loss.png`.

    A training that is already complete is not repeated. clock: in the place of the settings'. Raises UsageError where `out`
    holds something else, Interrupted after Ctrl-C or SIGTERM, with the state saved, and TrainError if the loss is no longer a
    number.
    """
    training = Training(recipe, settings, out, report or make_report(), clock or CLOCKS[settings.clock])
    training.begin(resume)
    if not training.complete:
        with training.report, interruption() as interrupted:
            training.run(interrupted)
    return training.result()


class Training:
    """One training under way. `begin` restores or clears, `run` takes the steps, `result` says what came of it."""

    def __init__(
        self, recipe: Recipe, settings: LoopSettings, out: Path, report: ProgressReport, clock: Callable[[], float]
    ) -> None:
        self.recipe, self.settings, self.out, self.report, self.clock = recipe, settings, out, report, clock
        self.device = choose_device(settings.device)
        self.model = recipe.model.to(self.device)
        self.optimizer = make_optimizer(self.model, settings)
        self.precision = choose_precision(settings.precision, self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == torch.float16)
        self.step = 0
        self.best: Best | None = None
        self.complete = False
        self.started = clock()
        self.evaluation_seconds = 0.0
        self.window = Window(clock(), torch.zeros((), device=self.device))

    @property
    def elapsed_seconds(self) -> float:
        return self.clock() - self.started

    # -- beginning, going on

    def begin(self, resume: Resume) -> None:
        """Restore the state in `out/last`, or make `out` ready for a new training; see `Resume`."""
        state = None if resume == "restart" else load_state(self.out / "last")
        if state is not None:
            self._check_agreement(state, resume)
            self._restore(state)
            return
        if resume == "require":
            raise UsageError(f"{self.out / 'last'}: nothing to resume; leave --resume out to begin")
        if resume == "auto" and (self.out / "config.json").exists():
            raise UsageError(f"{self.out} has a checkpoint but no state to go on from; --restart replaces it")
        self._clear()

    def _check_agreement(self, state: State, resume: Resume) -> None:
        """Raise UsageError naming every setting in which the training on disk differs from the one asked for."""
        there, here = {**state.settings, **state.identity}, {**asdict(self.settings), **self.recipe.identity}
        free = FREE_TO_CHANGE | ({"steps"} if resume == "require" else set())
        differing = sorted(
            name for name in there.keys() | here.keys() if name not in free and there.get(name) != here.get(name)
        )
        if differing:
            shown = ", ".join(f"{name} {there.get(name)} there, {here.get(name)} here" for name in differing)
            raise UsageError(
                f"{self.out} holds another training ({shown}); --restart replaces it, --out DIR puts this one elsewhere"
            )

    def _restore(self, state: State) -> None:
        restore_tensors(self.out / "last", self.model, self.optimizer)
        self.scaler.load_state_dict(state.scaler)
        self.step, self.best = state.step, state.best
        self.started = self.clock() - state.elapsed_seconds
        same_end = all(state.settings.get(name) == getattr(self.settings, name) for name in ("steps", "max_seconds"))
        self.complete = state.complete and (same_end or self.step >= self.settings.steps)
        forget_after(self.out / "metrics.jsonl", self.step)
        self.report.note(f"{self.out}: {'already trained' if self.complete else 'going on'} at step {self.step}")

    def _clear(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self.out / "last", ignore_errors=True)
        of_data = ("tokenizer.json", SOURCE_TOKENIZER_FILE, HELD_OUT_FILE)
        for name in ("config.json", "model.safetensors", *of_data, "metrics.jsonl", "loss.png"):
            (self.out / name).unlink(missing_ok=True)

    # -- steps

    def run(self, interrupted: threading.Event) -> None:
        """Take steps until the last; evaluate and save on the way."""
        while not self.complete:
            self._take_step()
            last = self._out_of_budget()
            evaluation_due = last or self.step % self.settings.eval_every == 0
            if evaluation_due or self.step % self.settings.log_every == 0:
                self._log()
            if evaluation_due:
                self._evaluate()
                self.complete = last
            if evaluation_due or interrupted.is_set():
                self._save()
            if interrupted.is_set() and not self.complete:
                raise Interrupted(
                    f"interrupted at step {self.step} of {self.settings.steps}; the state is in {self.out / 'last'}: "
                    "the same command goes on from there"
                )
        draw_curve(read_records(self.out / "metrics.jsonl"), self.out / "loss.png", self.recipe.deciding)

    def _take_step(self) -> None:
        torch.manual_seed(step_seed(self.settings.seed, self.step))  # dropout's, so that a resumed step repeats it
        elapsed = self.elapsed_seconds
        rate = learning_rate(self.settings, self.step, elapsed)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.model.train()
        batch = self.recipe.batch(self.step, progress(self.settings, self.step, elapsed))
        with self._autocast():
            loss = self.recipe.loss(*(tensor.to(self.device, non_blocking=True) for tensor in batch.tensors))
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.gradient_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.step += 1
        self.window.add(loss.detach(), batch.tokens)

    def _out_of_budget(self) -> bool:
        """Whether the step just taken was the last: all are taken, or the time left is what an evaluation needs."""
        limit = self.settings.max_seconds
        return self.step >= self.settings.steps or (
            limit is not None and self.elapsed_seconds + self.evaluation_seconds >= limit
        )

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self.precision, enabled=self.precision is not None)

    # -- looking, saving

    def _log(self) -> None:
        """Record the mean loss since the last time. Raises TrainError if it is no number."""
        window, self.window = self.window, Window(self.clock(), torch.zeros((), device=self.device))
        loss = float(window.loss_sum) / window.steps
        if not math.isfinite(loss):
            raise TrainError(f"the loss is {loss} at step {self.step}: {REMEDY}")
        seconds = max(self.clock() - window.began, 1e-9)
        left = (self.settings.steps - self.step) * seconds / window.steps
        if self.settings.max_seconds is not None:
            left = min(left, max(0.0, self.settings.max_seconds - self.elapsed_seconds))
        self.report.update(Status(self.step, self.settings.steps, loss, window.tokens / seconds, left))
        self._record(
            loss=loss,
            learning_rate=self.optimizer.param_groups[0]["lr"],
            tokens_per_second=round(window.tokens / seconds, 1),
        )

    def _evaluate(self) -> None:
        """Evaluate; a figure no worse than all before makes this the checkpoint in `out`: of two that the held-out part can't
        tell apart, the one that learned longer, at a lower rate."""
        began = self.clock()
        self.model.eval()
        with torch.inference_mode(), self._autocast():
            figures = self.recipe.evaluate(self.device)
        if not math.isfinite(figures[self.recipe.deciding]):
            raise TrainError(f"{self.recipe.deciding} is {figures[self.recipe.deciding]} at step {self.step}: {REMEDY}")
        is_best = self.best is None or self._no_worse(figures, self.best.figures)
        if is_best:
            self.best = Best(self.step, figures)
            config, recipe = self.recipe.checkpoint_config(figures), self.recipe
            weights = self.model.state_dict()
            save_checkpoint(self.out, config, weights, recipe.tokenizer_json, recipe.source_tokenizer_json)
        self.report.evaluated(self.step, figures, is_best)
        self._record(**figures)
        self.evaluation_seconds = self.clock() - began
        self.window = replace(self.window, began=self.clock())

    def _no_worse(self, figures: Mapping[str, float], than: Mapping[str, float]) -> bool:
        new, old = figures[self.recipe.deciding], than[self.recipe.deciding]
        return new >= old if self.recipe.higher_is_better else new <= old

    def _record(self, **figures: float) -> None:
        record = {"step": self.step, "elapsed_seconds": round(self.elapsed_seconds, 3), **figures}
        append_record(self.out / "metrics.jsonl", record)

    def _save(self) -> None:
        state = State(
            step=self.step,
            elapsed_seconds=self.elapsed_seconds,
            complete=self.complete,
            settings=asdict(self.settings),
            identity=dict(self.recipe.identity),
            best=self.best,
            scaler=self.scaler.state_dict(),
        )
        save_state(self.out / "last", state, self.model, self.optimizer)

    def result(self) -> Result:
        """Of a complete training; loads the best weights into the recipe's model."""
        assert self.best is not None, "a complete training was evaluated"
        self.model.load_state_dict(load_file(self.out / "model.safetensors"))
        self.model.eval()
        return Result(self.step, self.elapsed_seconds, self.best.step, self.best.figures)


@dataclass
class Window:
    """Steps since the last log line. The loss stays on the device: reading it would wait for a GPU at every step."""

    began: float
    loss_sum: Tensor
    steps: int = 0
    tokens: int = 0

    def add(self, loss: Tensor, tokens: int) -> None:
        self.loss_sum += loss
        self.steps += 1
        self.tokens += tokens


@contextmanager
def interruption() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C or SIGTERM sets; the second ends the process as usual. Main thread only."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, frame: FrameType | None) -> None:
        event.set()
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, handle)
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
