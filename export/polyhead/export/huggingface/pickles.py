"""Files that run code when they are read: refused, with the command with which those who trust them convert them."""

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def pickled_among(names: Iterable[str]) -> list[str]:
    return sorted(name for name in names if PurePosixPath(name).suffix in PICKLED)


def refusal(file: str, command: str) -> str:
    """One line for people; see the commands below."""
    return (
        f"{file} is pickle, which can run code when it is read; if you trust who made it, convert it: "
        f'python -c "{command}"'
    )


def missing_tensors(path: Path) -> str:
    """Why there is no safetensors file at `path`: because what lies in its folder is pickle, or because nothing does."""
    pickled = pickled_among(found.name for found in path.parent.iterdir()) if path.parent.is_dir() else []
    return f"{path}: no such file; {refusal(pickled[0], convert_tensors(path.parent / pickled[0], path))}" if pickled else (
        f"{path}: no such file"
    )  # fmt: skip


def convert_tensors(pickled: Path, path: Path) -> str:
    """A file of tensors by name. torch is told to read nothing else."""
    return (
        "import torch, safetensors.torch as s; "
        f"w = torch.load('{pickled}', map_location='cpu', weights_only=True); "
        f"s.save_file({{k: v.contiguous().clone() for k, v in w.items()}}, '{path}')"
    )


def convert_model(folder: Path, auto_class: str) -> str:
    """All weights of a model in transformers' layout, in the folder they are in."""
    return f"from transformers import {auto_class} as M; M.from_pretrained('{folder}').save_pretrained('{folder}')"


def convert_hub_model(name: str, folder: str, *, sentences: bool) -> str:
    """A model on the hub, with its tokenizer, into a folder here; `sentences`: one of sentence-transformers."""
    if sentences:
        return (
            "from sentence_transformers import SentenceTransformer as M; "
            f"M('{name}', device='cpu').save_pretrained('{folder}')"
        )
    return (
        f"import transformers as t; n, f = '{name}', '{folder}'; "
        "M = getattr(t, t.AutoConfig.from_pretrained(n).architectures[0]); "
        "M.from_pretrained(n).save_pretrained(f); t.AutoTokenizer.from_pretrained(n).save_pretrained(f)"
    )
