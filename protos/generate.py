"""Regenerate the committed code of protos/polyhead/v1 (`make protos`), or check that it is current (`--check`).

grpcio-tools is pinned in pyproject.toml to the first release that emits protobuf 6.30 code, which runs on every newer runtime.
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

import grpc_tools
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent
WELL_KNOWN = Path(grpc_tools.__file__).parent / "_proto"


def generate(out: Path) -> None:
    """Write modules, services and type stubs of every .proto below ROOT into `out`; exits 1 with protoc's message if one is wrong."""
    sources = sorted(str(p.relative_to(ROOT)) for p in ROOT.rglob("*.proto"))
    plugins = [
        f"--plugin=protoc-gen-{name}={shutil.which(f'protoc-gen-{name}', path=Path(sys.executable).parent)}"
        for name in ("mypy", "mypy_grpc")
    ]
    outs = [f"--{kind}_out={out}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")]
    if protoc.main(["protoc", f"-I{ROOT}", f"-I{WELL_KNOWN}", *plugins, *outs, *sources]):
        raise SystemExit(1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 if the committed code is not current"
    )
    if not parser.parse_args().check:
        generate(ROOT)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        fresh = {p.relative_to(folder): p.read_text() for p in Path(folder).rglob("*_pb2*.py*")}
    committed = {p.relative_to(ROOT): p.read_text() for p in ROOT.rglob("*_pb2*.py*") if p.suffix in (".py", ".pyi")}
    stale = sorted(str(p) for p in fresh.keys() | committed.keys() if fresh.get(p) != committed.get(p))
    if stale:
        print(f"generated code is not current, run `make protos`: {', '.join(stale)}")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
