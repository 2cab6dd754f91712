"""The random checkpoint in the formats of the peers.

    python formats.py CHECKPOINT OUT      writes OUT/hf (Hugging Face layout) and OUT/q8_0.gguf, OUT/q4_0.gguf

CHECKPOINT is what `make_checkpoint.py` wrote. Needs gguf, safetensors and numpy. Both of Polyhead and Hugging Face rotate dimension i
with i + D/2; llama.cpp rotates neighbours, so its query and key rows are put in that order.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

KINDS = {"q8_0": (gguf.GGMLQuantizationType.Q8_0, 7), "q4_0": (gguf.GGMLQuantizationType.Q4_0, 2)}
# Polyhead's name in a block, Hugging Face's, llama.cpp's.
LINEAR = (
    ("attention.query", "self_attn.q_proj", "attn_q"),
    ("attention.key", "self_attn.k_proj", "attn_k"),
    ("attention.value", "self_attn.v_proj", "attn_v"),
    ("attention.output", "self_attn.o_proj", "attn_output"),
    ("mlp.gate", "mlp.gate_proj", "ffn_gate"),
    ("mlp.up", "mlp.up_proj", "ffn_up"),
    ("mlp.down", "mlp.down_proj", "ffn_down"),
)
NORMS = (("attention_norm", "input_layernorm", "attn_norm"), ("mlp_norm", "post_attention_layernorm", "ffn_norm"))
Floats = NDArray[np.float32]
Weights = dict[str, Floats]


def write_hugging_face(checkpoint: Path, model: dict[str, Any], weights: Weights, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    names = {"embedding.weight": "model.embed_tokens.weight", "norm.weight": "model.norm.weight"}
    for layer in range(model["layers"]):
        for ours, theirs, _ in (*LINEAR, *NORMS):
            names[f"blocks.{layer}.{ours}.weight"] = f"model.layers.{layer}.{theirs}.weight"
    save_file({theirs: weights[ours] for ours, theirs in names.items()}, out / "model.safetensors", {"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": model["width"],
        "intermediate_size": model["hidden"],
        "num_hidden_layers": model["layers"],
        "num_attention_heads": model["heads"],
        "num_key_value_heads": model["kv_heads"],
        "head_dim": model["width"] // model["heads"],
        "max_position_embeddings": model["max_tokens"],
        "vocab_size": model["vocabulary_size"],
        "rms_norm_eps": model["norm_epsilon"],
        "rope_theta": model["rope_theta"],
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "torch_dtype": "float32",
    }
    (out / "config.json").write_text(json.dumps(config, indent=1))
    (out / "generation_config.json").write_text(json.dumps({"bos_token_id": 0, "eos_token_id": 1}))
    shutil.copy(checkpoint / "tokenizer.json", out)
    special = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (out / "tokenizer_config.json").write_text(json.dumps(special))


def write_gguf(checkpoint: Path, model: dict[str, Any], weights: Weights, kind: str, path: Path) -> None:
    quantization, file_type = KINDS[kind]
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(model["layers"])
    writer.add_context_length(model["max_tokens"])
    writer.add_embedding_length(model["width"])
    writer.add_feed_forward_length(model["hidden"])
    writer.add_head_count(model["heads"])
    writer.add_head_count_kv(model["kv_heads"])
    writer.add_layer_norm_rms_eps(model["norm_epsilon"])
    writer.add_rope_dimension_count(model["width"] // model["heads"])
    writer.add_rope_freq_base(model["rope_theta"])
    writer.add_vocab_size(model["vocabulary_size"])
    writer.add_file_type(file_type)
    add_tokenizer(writer, json.loads((checkpoint / "tokenizer.json").read_text())["model"])

    def add(name: str, tensor: Floats) -> None:
        if tensor.ndim == 1:
            writer.add_tensor(name, tensor)
        else:
            writer.add_tensor(name, gguf.quants.quantize(tensor, quantization), raw_dtype=quantization)

    add("token_embd.weight", weights["embedding.weight"])
    add("output_norm.weight", weights["norm.weight"])
    rotated = {"attn_q": model["heads"], "attn_k": model["kv_heads"]}
    for layer in range(model["layers"]):
        for ours, _, theirs in (*LINEAR, *NORMS):
            tensor = weights[f"blocks.{layer}.{ours}.weight"]
            if heads := rotated.get(theirs):
                tensor = interleave(tensor, heads)
            add(f"blk.{layer}.{theirs}.weight", tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_tokenizer(writer: gguf.GGUFWriter, bpe: dict[str, Any]) -> None:
    tokens = [token for token, _ in sorted(bpe["vocab"].items(), key=lambda item: item[1])]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3] + [1] * (len(tokens) - 2))  # 3: control
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in bpe["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)


def interleave(weight: Floats, heads: int) -> Floats:
    """(H·D, C): rows i and i + D/2 of each head become neighbours."""
    outputs, inputs = weight.shape
    halves = weight.reshape(heads, 2, outputs // heads // 2, inputs)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(outputs, inputs))


if __name__ == "__main__":
    checkpoint, out = map(Path, sys.argv[1:])
    model = json.loads((checkpoint / "config.json").read_text())["model"]
    weights = load_file(checkpoint / "model.safetensors")
    write_hugging_face(checkpoint, model, weights, out / "hf")
    for kind in KINDS:
        write_gguf(checkpoint, model, weights, kind, out / f"{kind}.gguf")
