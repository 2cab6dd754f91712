"""Settings of the recipe `seq2seq`: architectures, sizes, presets, and the options that change them."""

from argparse import ArgumentParser, BooleanOptionalAction, Namespace, _ArgumentGroup
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

from polyhead.models.seq2seq import RNNSeq2Seq, RNNSeq2SeqConfig, TransformerSeq2Seq, TransformerSeq2SeqConfig
from polyhead.models.seq2seq.rnn_config import AttentionScore, Cell
from polyhead.models.seq2seq.transformer_config import Norm, Positions
from polyhead.train.errors import UsageError
from polyhead.train.settings import LoopSettings
from polyhead.train.translation_metrics import DEFAULT_TOKENIZER, TOKENIZERS

Architecture = Literal["rnn", "rnn-attention", "transformer"]
ARCHITECTURES: tuple[str, ...] = get_args(Architecture)
Model = RNNSeq2Seq | TransformerSeq2Seq

RECURRENT_OPTIONS = ("cell", "score", "embedding_size", "bidirectional", "input_feeding", "residual")
LENGTH_PENALTIES = (-10, 10)
"""As the server's requests allow."""
TRANSFORMER_OPTIONS = ("heads", "hidden", "norm", "positions")


@dataclass(frozen=True)
class Seq2SeqSettings:
    """A training of this recipe. Raises ValueError naming field, limit and what was given."""

    arch: Architecture
    vocabulary: int
    """Largest size of a BPE vocabulary; 0: tokens are characters."""
    shared_vocabulary: bool
    batch_size: int
    width: int
    loop: LoopSettings
    lowercase: bool = False
    """Whether a source vocabulary of its own knows lower case alone."""
    layers: int = 1
    dropout: float = 0.1
    # of recurrent models
    cell: Cell = "gru"
    score: AttentionScore = "additive"
    embedding_size: int = 128
    bidirectional: bool = True
    input_feeding: bool = False
    residual: bool = False
    # of Transformers
    heads: int = 4
    hidden: int = 512
    norm: Norm = "pre"
    positions: Positions = "sinusoidal"
    # of training and measuring
    max_source_tokens: int = 256
    max_target_tokens: int = 256
    """With the end token."""
    label_smoothing: float = 0.0
    own_share: float = 0.0
    """Of the target's tokens that the model reads, what is its own choice at the end of the training, be it steps or time that
    ends it: the share grows evenly from 0 (Bengio et al. 2015, scheduled sampling, section 2.4)."""
    beam_width: int = 4
    length_penalty: float = 1.0
    bleu_tokenize: str = DEFAULT_TOKENIZER
    evaluation_pairs: int = 400
    """On at most so many pairs the best checkpoint is chosen."""

    def __post_init__(self) -> None:
        if self.arch not in ARCHITECTURES:
            raise ValueError(f"arch must be one of {', '.join(ARCHITECTURES)}, not {self.arch!r}")
        for name in ("batch_size", "beam_width", "evaluation_pairs", "max_source_tokens", "max_target_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("dropout", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, not {getattr(self, name)}")
        if self.bleu_tokenize not in TOKENIZERS:
            raise ValueError(f"bleu_tokenize must be one of {', '.join(TOKENIZERS)}, not {self.bleu_tokenize!r}")
        low, high = LENGTH_PENALTIES
        if not low <= self.length_penalty <= high:
            raise ValueError(f"length_penalty must be from {low} to {high}, not {self.length_penalty}")
        if not 0 <= self.own_share <= 1:
            raise ValueError(f"own_share must be from 0 to 1, not {self.own_share}")
        if self.arch == "rnn-attention" and self.score == "none":
            raise ValueError("score none is arch rnn: there is no attention then")
        if self.arch == "rnn" and self.input_feeding:
            raise ValueError("input_feeding feeds what attention found, and arch rnn has none")
        self.config(8, 8)  # refuses sizes that contradict each other

    def config(self, source_vocabulary: int, target_vocabulary: int) -> RNNSeq2SeqConfig | TransformerSeq2SeqConfig:
        kind = TransformerSeq2SeqConfig if self.arch == "transformer" else RNNSeq2SeqConfig
        known = {field.name for field in fields(kind)}
        sizes: dict[str, Any] = {name: value for name, value in asdict(self).items() if name in known}
        if self.arch != "transformer":
            sizes["attention"] = "none" if self.arch == "rnn" else self.score
        return kind(source_vocabulary, target_vocabulary, share_embeddings=self.shared_vocabulary, **sizes)

    def build(self, source_vocabulary: int, target_vocabulary: int) -> Model:
        config = self.config(source_vocabulary, target_vocabulary)
        return TransformerSeq2Seq(config) if isinstance(config, TransformerSeq2SeqConfig) else RNNSeq2Seq(config)

    def identity(self) -> dict[str, Any]:
        """All but the loop's settings, by which a resumed training knows itself again."""
        return {name: value for name, value in asdict(self).items() if name != "loop"}


def preset(name: str, arch: str) -> Seq2SeqSettings:
    """dates: short texts of characters, in under three minutes on two cores. sentences: some 10,000 pairs of sentences."""
    settings: dict[str, Any] = {"arch": arch, **_COMMON[name], **_SIZES[name][arch == "transformer"]}
    own = {name: settings.pop(name) for name in ("steps", "learning_rate", "warmup_steps") if name in settings}
    settings["loop"] = replace(settings["loop"], **own)
    return Seq2SeqSettings(**settings)


_COMMON: dict[str, dict[str, Any]] = {
    "dates": {
        "vocabulary": 0, "shared_vocabulary": False, "lowercase": True, "batch_size": 128, "dropout": 0.0,
        "loop": LoopSettings(
            steps=2000, final_learning_rate=0.01, warmup_steps=100, beta2=0.98, weight_decay=0.01, eval_every=500,
            max_seconds=170,
        ),
    },
    "sentences": {
        "vocabulary": 3000, "shared_vocabulary": True, "batch_size": 64, "dropout": 0.1, "label_smoothing": 0.1,
        "loop": LoopSettings(
            steps=6000, final_learning_rate=0.01, warmup_steps=200, beta2=0.98, weight_decay=0.01, eval_every=1000
        ),
    },
}  # fmt: skip
_SIZES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "dates": (
        {"width": 160, "embedding_size": 96, "learning_rate": 3e-3},
        {
            "width": 96, "layers": 2, "hidden": 192, "batch_size": 32,
            "steps": 3000, "learning_rate": 2e-3, "warmup_steps": 200,
        },
    ),
    "sentences": (
        {"width": 256, "embedding_size": 128, "score": "general", "learning_rate": 2e-3},
        {"width": 160, "layers": 2, "hidden": 320, "learning_rate": 2e-3},
    ),
}  # fmt: skip
"""Of recurrent models, and of Transformers, which learn from many small batches sooner than from few large ones."""


PRESETS = tuple(_COMMON)


def check_model_arguments(args: Namespace, settings: Seq2SeqSettings) -> None:
    """Raises UsageError for a given option that would change nothing in a model of these settings."""
    transformer = settings.arch == "transformer"
    names = RECURRENT_OPTIONS if transformer else TRANSFORMER_OPTIONS
    if given := [f"--{name.replace('_', '-')}" for name in names if getattr(args, name) is not None]:
        kind = "recurrent models" if transformer else "Transformers"
        raise UsageError(f"only for {kind}: {', '.join(given)}; --arch is {settings.arch}")
    if settings.arch == "rnn" and args.score is not None:
        raise UsageError(f"--score {args.score} is of attention, and arch rnn has none")
    if args.residual and settings.layers == 1:
        raise UsageError("--residual is for models with several --layers, not 1")
    if args.length_penalty is not None and settings.beam_width == 1:
        raise UsageError("--length-penalty ranks the answers of several beams, and --beam-width is 1")
    if args.lowercase and settings.shared_vocabulary:
        raise UsageError("--lowercase is for sources with their own vocabulary; add --no-shared-vocabulary")


def add_model_arguments(parser: ArgumentParser) -> None:
    text = parser.add_argument_group("vocabularies")
    text.add_argument("--vocabulary", type=int, metavar="SIZE", help="of BPE tokens (0: characters)")
    text.add_argument("--shared-vocabulary", action=BooleanOptionalAction, default=None, help="one for both sides")
    text.add_argument(
        "--lowercase", action=BooleanOptionalAction, default=None, help="of sources with their own vocabulary"
    )
    text.add_argument("--max-source-tokens", type=int, help="longest source; longer ones are not learned from")
    text.add_argument("--max-target-tokens", type=int, help="longest answer with its end token")
    model = parser.add_argument_group("model")
    for name in ("layers", "width"):
        model.add_argument(f"--{name}", type=int)
    model.add_argument("--dropout", type=float)
    rnn = parser.add_argument_group("recurrent models")
    rnn.add_argument("--cell", choices=get_args(Cell))
    rnn.add_argument("--score", choices=get_args(AttentionScore)[1:], help="of attention")
    rnn.add_argument("--embedding-size", type=int)
    for name, text_ in (
        ("bidirectional", "encoder"),
        ("input-feeding", None),
        ("residual", "layers add to what they read"),
    ):
        rnn.add_argument(f"--{name}", action=BooleanOptionalAction, default=None, help=text_)
    transformer = parser.add_argument_group("Transformers")
    for name in ("heads", "hidden"):
        transformer.add_argument(f"--{name}", type=int)
    transformer.add_argument("--norm", choices=get_args(Norm))
    transformer.add_argument("--positions", choices=get_args(Positions))


def add_bleu_argument(group: _ArgumentGroup) -> None:
    help = (
        f"how sacrebleu finds the words that BLEU counts ({DEFAULT_TOKENIZER}; zh or char where spaces don't part them)"
    )
    group.add_argument("--bleu-tokenize", choices=TOKENIZERS, help=help)


def add_training_arguments(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("learning and measuring")
    group.add_argument("--label-smoothing", type=float)
    group.add_argument(
        "--own-share", type=float, metavar="SHARE", help="scheduled sampling: of the tokens read, at the end"
    )
    group.add_argument("--beam-width", type=int, help="of the last measurement")
    group.add_argument("--length-penalty", type=float, help="of the last measurement")
    add_bleu_argument(group)
    group.add_argument("--evaluation-pairs", type=int, metavar="N", help="choose the best checkpoint on so many")
