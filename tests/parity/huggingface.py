"""Tiny random checkpoints in Hugging Face layout, one for each architecture, made by transformers' own configuration classes."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers

VOCABULARY = 97
POSITIONS = 160
LABELS = {0: "calm", 1: "glad", 2: "sad"}

SIZES: Mapping[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "max_position_embeddings": POSITIONS,
    "pad_token_id": 0,
}
GROUPED = {**SIZES, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2}
ROBERTA = {**SIZES, "pad_token_id": 1, "max_position_embeddings": 66}

DECODERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "gemma": ("GemmaConfig", {**GROUPED, "head_dim": 16}),
    "gemma2": (
        "Gemma2Config",
        {
            **GROUPED,
            "head_dim": 16,
            "sliding_window": 16,
            "query_pre_attn_scalar": 20,
            "attn_logit_softcapping": 3.0,
            "final_logit_softcapping": 2.0,
        },
    ),
    "gemma3_text": (
        "Gemma3TextConfig",
        {
            **GROUPED,
            "num_hidden_layers": 3,
            "head_dim": 16,
            "sliding_window": 16,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "gpt2": (
        "GPT2Config",
        {"vocab_size": VOCABULARY, "n_embd": 48, "n_layer": 2, "n_head": 6, "n_positions": POSITIONS,
         "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
    ),
    "gpt_neox": (
        "GPTNeoXConfig",
        {**SIZES, "bos_token_id": 1, "eos_token_id": 2, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4,
         "partial_rotary_factor": 0.25}},
    ),
    "llama": (
        "LlamaConfig",
        {
            **GROUPED,
            "num_hidden_layers": 3,  # from three on torch's exporter reads the number of rows off a slot
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 4.0, "low_freq_factor": 1.0,
                                "high_freq_factor": 4.0, "original_max_position_embeddings": 64},
        },
    ),
    "llama-linear": ("LlamaConfig", {**GROUPED, "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}),
    "llama-dynamic": ("LlamaConfig", {**GROUPED, "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}),
    "llama-yarn": (
        "LlamaConfig",
        {**GROUPED, "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0,
                                        "original_max_position_embeddings": 80}},
    ),
    "mistral": ("MistralConfig", {**GROUPED, "head_dim": 16, "sliding_window": 24}),
    "phi3": (
        "Phi3Config",
        {
            **GROUPED,
            "max_position_embeddings": 2 * POSITIONS,
            "original_max_position_embeddings": POSITIONS,
            "rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0, 1.2, 1.3, 1.5],
                                "long_factor": [2.0, 2.5, 3.0, 4.0], "original_max_position_embeddings": POSITIONS},
        },
    ),
    "qwen2": ("Qwen2Config", {**GROUPED, "use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1}),
    "qwen3": ("Qwen3Config", {**GROUPED, "head_dim": 16}),
    "smollm3": ("SmolLM3Config", {**GROUPED, "num_hidden_layers": 4, "tie_word_embeddings": True}),
}  # fmt: skip
"""Configuration class and its fields: windows shorter than the prompts, soft caps low enough to be felt."""

ENCODERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "bert": ("BertConfig", SIZES),
    "camembert": ("CamembertConfig", ROBERTA),
    "deberta-v2": (
        "DebertaV2Config",
        {**SIZES, "relative_attention": True, "position_buckets": 16, "pos_att_type": ["p2c", "c2p"],
         "position_biased_input": False, "norm_rel_ebd": "layer_norm", "share_att_key": True, "type_vocab_size": 0},
    ),
    "distilbert": (
        "DistilBertConfig",
        {"vocab_size": VOCABULARY, "dim": 48, "hidden_dim": 80, "n_layers": 2, "n_heads": 6,
         "max_position_embeddings": POSITIONS, "pad_token_id": 0},
    ),
    "electra": ("ElectraConfig", {**SIZES, "embedding_size": 24}),
    "modernbert": (
        "ModernBertConfig",
        {**SIZES, "local_attention": 16, "global_attn_every_n_layers": 2, "cls_token_id": 1, "sep_token_id": 2,
         "bos_token_id": 1, "eos_token_id": 2},
    ),
    "mpnet": ("MPNetConfig", ROBERTA),
    "roberta": ("RobertaConfig", ROBERTA),
    "xlm-roberta": ("XLMRobertaConfig", ROBERTA),
}  # fmt: skip


def write_decoder(folder: Path, name: str, **fields: Any) -> Any:
    """A checkpoint of DECODERS, with other fields perhaps; returns transformers' model, eager."""
    kind, given = DECODERS[name]
    return write_checkpoint(folder, "AutoModelForCausalLM", kind, {**given, **fields})


def write_classifier(folder: Path, name: str, **fields: Any) -> Any:
    kind, given = ENCODERS[name]
    labels = {"id2label": LABELS, "label2id": {label: index for index, label in LABELS.items()}}
    return write_checkpoint(folder, "AutoModelForSequenceClassification", kind, {**given, **labels, **fields})


def write_token_classifier(folder: Path, name: str, **fields: Any) -> Any:
    """With a tokenizer that puts tokens around a text."""
    kind, given = ENCODERS[name]
    labels = {"id2label": LABELS, "label2id": {label: index for index, label in LABELS.items()}}
    model = write_checkpoint(folder, "AutoModelForTokenClassification", kind, {**given, **labels, **fields})
    add_separators(folder)
    return model


def write_cross_encoder(folder: Path, name: str, **fields: Any) -> Any:
    """One label, and a tokenizer that puts tokens around and between two texts."""
    model = write_classifier(folder, name, **{"id2label": {0: "score"}, "label2id": {"score": 0}, **fields})
    add_separators(folder)
    return model


def write_embedder(folder: Path, name: str, **fields: Any) -> Any:
    kind, given = ENCODERS[name]
    return write_checkpoint(folder, "AutoModel", kind, {**given, **fields})


def write_checkpoint(folder: Path, auto_class: str, config: str, fields: Mapping[str, Any]) -> Any:
    """config.json, model.safetensors and tokenizer.json of a random model whose every part has an effect."""
    torch.manual_seed(0)
    configuration = getattr(transformers, config)(**fields)
    model = getattr(transformers, auto_class).from_config(configuration, attn_implementation="eager").float().eval()
    spread(model)
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tokenizer().to_str(), "utf-8")
    return model


@torch.no_grad()
def spread(model: torch.nn.Module) -> None:
    """Make weights, also of norms and biases, so large that answers vary."""
    for parameter in model.parameters():
        noise = torch.randn_like(parameter)
        parameter.add_(0.3 * noise if parameter.dim() < 2 else 0.6 * noise / parameter.shape[-1] ** 0.5)


def tokenizer() -> tokenizers.Tokenizer:
    """Words between spaces, one token each."""
    words = ["<pad>", "<s>", "</s>", *(f"w{i}" for i in range(VOCABULARY - 3))]
    library = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>")
    )
    library.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return library


def add_separators(folder: Path) -> None:
    """`<s> first </s>` and `<s> first </s> second </s>`, the second text and its end with type 1."""
    library = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    library.post_processor = tokenizers.processors.BertProcessing(("</s>", 2), ("<s>", 1))
    library.save(str(folder / "tokenizer.json"))


def write_modules(folder: Path, *names: str) -> None:
    """modules.json of sentence-transformers, and an empty folder for each step but the first, such as `1_Pooling`."""
    entries = [
        {"idx": i, "name": str(i), "path": f"{i}_{name}" if i else "", "type": f"sentence_transformers.models.{name}"}
        for i, name in enumerate(names)
    ]
    (folder / "modules.json").write_text(json.dumps(entries))
    for entry in entries[1:]:
        (folder / str(entry["path"])).mkdir()


def add_tokenizer_class(folder: Path) -> None:
    """What sentence-transformers needs to load the tokenizer, and to tell two texts apart."""
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    given = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "model_input_names": inputs}
    edit_json(folder / "tokenizer_config.json", **given)


def edit_json(path: Path, **fields: Any) -> None:
    """Change top-level fields of a JSON file; None takes one away."""
    document = {**(json.loads(path.read_text("utf-8")) if path.exists() else {}), **fields}
    path.write_text(json.dumps({name: value for name, value in document.items() if value is not None}), "utf-8")
