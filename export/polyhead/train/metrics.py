"""`metrics.jsonl`, one JSON object a line, and the picture drawn from it."""

import json
from pathlib import Path
from typing import Any

Record = dict[str, Any]


def append_record(path: Path, record: Record) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def read_records(path: Path) -> list[Record]:
    """All whole records; a line that a crash cut short is left out."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text("utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


def forget_after(path: Path, step: int) -> None:
    """Drop what was recorded after `step`: a training that goes on from there records it again."""
    kept = [record for record in read_records(path) if record["step"] <= step]
    partial = path.with_name(f"{path.name}.tmp")
    partial.write_text("".join(json.dumps(record) + "\n" for record in kept), "utf-8")
    partial.replace(path)


def draw_curve(records: list[Record], path: Path, deciding: str) -> None:
    """Training loss over steps and, on the same axis if it is a loss too, else on one of its own, the deciding figure."""
    from matplotlib.figure import Figure  # takes half a second to import; needed once, at the end

    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    axes = figure.subplots()
    training = [(r["step"], r["loss"]) for r in records if "loss" in r]
    held_out = [(r["step"], r[deciding]) for r in records if deciding in r]
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.3)
    axes.plot(*_columns(training), color="tab:blue", linewidth=1, label="training loss")
    is_loss = deciding.endswith("loss")
    other = axes if is_loss else axes.twinx()
    other.plot(*_columns(held_out), color="tab:orange", marker="o", markersize=3, label=deciding.replace("_", " "))
    if not is_loss:
        other.set_ylabel(deciding.replace("_", " "))
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    partial = path.with_name(f"{path.stem}.tmp{path.suffix}")
    figure.savefig(partial)
    partial.replace(path)


def _columns(points: list[tuple[int, float]]) -> tuple[list[int], list[float]]:
    return [step for step, _ in points], [value for _, value in points]
