"""Which architectures can be imported, and which task a checkpoint's class stands for.

An architecture is listed if a tiny random checkpoint of it passes tests/parity: transformers' attention function is all that
export replaces, so others may work, but nobody has held them against transformers.
"""

from polyhead.export.errors import ExportError
from polyhead.models.checkpoint import Task

DECODERS = {
    "gemma": "Gemma",
    "gemma2": "Gemma 2",
    "gemma3_text": "Gemma 3 (text)",
    "gpt2": "GPT-2",
    "gpt_neox": "GPT-NeoX, Pythia",
    "llama": "Llama, SmolLM, SmolLM 2",
    "mistral": "Mistral",
    "phi3": "Phi-3",
    "qwen2": "Qwen 2",
    "qwen3": "Qwen 3",
    "smollm3": "SmolLM 3",
}
"""`model_type` of config.json, and the name people know."""

ENCODERS = {
    "bert": "BERT, MiniLM",
    "camembert": "CamemBERT",
    "deberta-v2": "DeBERTa v2, v3",
    "distilbert": "DistilBERT",
    "electra": "ELECTRA",
    "modernbert": "ModernBERT",
    "mpnet": "MPNet",
    "roberta": "RoBERTa",
    "xlm-roberta": "XLM-RoBERTa",
}

SEQ2SEQ = {
    "bart": "BART",
    "marian": "Marian, OPUS-MT",
    "mt5": "mT5",
    "t5": "T5, Flan-T5",
}

TASK_OF_HEAD: dict[str, Task] = {
    "ForCausalLM": "generate",
    "LMHeadModel": "generate",
    "ForConditionalGeneration": "generate",
    "MTModel": "generate",
    "ForSequenceClassification": "classify",
    "ForTokenClassification": "classify",
    "Model": "embed",
}
"""By the ending of the class in config.json's `architectures`."""


def task_of(model_type: str, architecture: str, said: Task | None, wanted: Task | None) -> Task:
    """What the checkpoint does, or `wanted` instead. `said`: what sentence-transformers says that it does. Raises ExportError for what
    can't be imported, naming what can."""
    names = DECODERS | ENCODERS | SEQ2SEQ
    if model_type not in names:
        raise ExportError(f"{architecture or model_type} can't be imported; what can: {supported()}")
    task = wanted or said or _task_of_class(architecture)
    if (task == "generate") != (model_type in DECODERS | SEQ2SEQ):
        tasks = "classify or embed" if model_type in ENCODERS else "generate"
        raise ExportError(
            f"{architecture or model_type} can't be imported to {task}: of {names[model_type]} only models that {tasks} are; "
            f"what can: {supported()}"
        )
    return task


def _task_of_class(architecture: str) -> Task:
    for ending, task in TASK_OF_HEAD.items():
        if architecture.endswith(ending):
            return task
    known = ", ".join(f"…{ending} ({task})" for ending, task in TASK_OF_HEAD.items())
    raise ExportError(
        f"config.json: architectures: {architecture or 'nothing'} doesn't say a task; known are {known}; "
        "or name one with --task"
    )


def supported() -> str:
    """For people."""
    generating = ", ".join((DECODERS | SEQ2SEQ).values())
    return f"{generating} to generate; {', '.join(ENCODERS.values())} to classify and embed"
