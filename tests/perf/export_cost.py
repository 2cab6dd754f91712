"""What an export takes: seconds, and the most memory at a time beside the checkpoint's weights in fp32.

    python -m tests.perf.export_cost CHECKPOINT [--quantize int8] [--cache int8] [--threads 2]

It runs `polyhead export` as a process of its own into a folder that is deleted afterwards. Peak memory is resident memory, the
pages of mapped weights included. `make_checkpoint.py --shape 135m` writes a checkpoint of 135 M parameters, and
`tests/perf/peers/formats.py` the same in Hugging Face layout.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from safetensors import safe_open

FP32_BYTES = 4


def weights_bytes(checkpoint: Path) -> int:
    """Of all weights in fp32."""
    count = 0
    for path in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(path, "np") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - it is no mapping
                size = 1
                for dimension in tensors.get_slice(name).get_shape():
                    size *= dimension
                count += size
    return count * FP32_BYTES


def export_cost(checkpoint: Path, flags: list[str], threads: int) -> dict[str, float]:
    """Wall and processor seconds and bytes. Raises CalledProcessError where the export fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "polyhead.export", str(checkpoint), "--out", f"{out}/model", *flags]
        began = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
        seconds = time.perf_counter() - began
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {"seconds": seconds, "processor_seconds": used.ru_utime + used.ru_stime, "peak_bytes": used.ru_maxrss * 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--quantize", default="none")
    parser.add_argument("--cache", default="float")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    flags = ["--quantize", options.quantize, "--cache", options.cache]
    figures = export_cost(options.checkpoint, flags, options.threads)
    weights = weights_bytes(options.checkpoint)
    figures |= {"weights_bytes": weights, "peak_over_weights": figures["peak_bytes"] / weights}
    if options.json:
        print(json.dumps(figures))
        return
    print(f"{figures['seconds']:.0f} s, {figures['processor_seconds']:.0f} s of processor time")
    print(f"at most {figures['peak_bytes'] / 1e9:.2f} GB, {figures['peak_over_weights']:.2f} times the weights in fp32")


if __name__ == "__main__":
    main()
