"""How to train: the settings of the loop, the learning rate they give each step, optimizer, device and precision."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal

import torch
from torch import nn

from polyhead.train.errors import UsageError

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.monotonic, "processor": time.process_time}


@dataclass(frozen=True)
class LoopSettings:
    """How to train. Raises ValueError naming field, limit and what was given."""

    steps: int = 1000
    learning_rate: float = 1e-3
    """The peak, reached after warm-up."""
    final_learning_rate: float = 0.1
    """Where the cosine ends, as a share of the peak."""
    warmup_steps: int = 100
    beta1: float = 0.9
    beta2: float = 0.99
    weight_decay: float = 0.1
    """Of matrices; norms and biases don't decay."""
    gradient_clip: float = 1.0
    """Largest L2 norm of all gradients together."""
    eval_every: int = 200
    """In steps; the last step is evaluated too."""
    log_every: int = 10
    seed: int = 0
    max_seconds: float | None = None
    """Stop, learning rate already lowered, so that the last evaluation ends by then. None: take all steps."""
    clock: Literal["wall", "processor"] = "wall"
    """What max_seconds counts. processor: of all threads together, so that what else runs on the machine changes little."""
    device: str = "auto"
    """auto: a GPU if there is one."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Of autocast. auto: bf16 where the GPU has it, fp16 on older ones, fp32 on a CPU."""

    def __post_init__(self) -> None:
        for name in ("steps", "eval_every", "log_every", "learning_rate", "gradient_clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")
        for name in ("warmup_steps", "weight_decay", "seed"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be at least 0, not {getattr(self, name)}")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, not {getattr(self, name)}")
        if not 0 <= self.final_learning_rate <= 1:
            raise ValueError(f"final_learning_rate must be from 0 to 1, not {self.final_learning_rate}")
        if self.clock not in CLOCKS:
            raise ValueError(f"clock must be {' or '.join(CLOCKS)}, not {self.clock!r}")
        if self.max_seconds is not None and not self.max_seconds > 0:
            raise ValueError(f"max_seconds must be above 0, not {self.max_seconds}")


def learning_rate(settings: LoopSettings, step: int, elapsed_seconds: float) -> float:
    """Linear warm-up, then half a cosine (Loshchilov and Hutter 2017, SGDR, equation 5 without restarts) over what is left.

    A time budget that is further spent than the steps moves the cosine on, so that it ends low either way.
    """
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / (settings.warmup_steps + 1)
    done = progress(settings, step, elapsed_seconds, settings.warmup_steps)
    low = settings.final_learning_rate
    return settings.learning_rate * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * done)))


def progress(settings: LoopSettings, step: int, elapsed_seconds: float, beginning: int = 0) -> float:
    """How far a training is, from 0 to 1: the larger of the shares of its steps, those of its `beginning` aside, and of its
    time budget. Whatever shall come to its end with the training goes by it."""
    of_steps = (step - beginning) / max(1, settings.steps - beginning)
    of_time = 0.0 if settings.max_seconds is None else elapsed_seconds / settings.max_seconds
    return min(1.0, max(0.0, of_steps, of_time))


def step_seed(seed: int, step: int) -> int:
    """A seed for each step. Hashed, because torch's generator on a CPU looks at the lower 32 bits alone."""
    return int.from_bytes(blake2b(f"{seed} {step}".encode(), digest_size=7).digest(), "little")


def make_optimizer(model: nn.Module, settings: LoopSettings) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019) that decays matrices only."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(settings.beta1, settings.beta2), fused=True)


def choose_device(name: str) -> torch.device:
    """auto: a GPU if there is one. Raises UsageError for a device that isn't there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        raise UsageError(f"device {name!r}: {str(error).splitlines()[0]}") from error


def choose_precision(name: str, device: torch.device) -> torch.dtype | None:
    """The type to autocast to, None for fp32. bf16 needs no loss scaling, but GPUs before compute capability 8 lack it."""
    if name == "auto" and device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(name)
