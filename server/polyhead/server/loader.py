"""A folder on disk → a model that has answered its warm-up."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from polyhead.server.background import in_background
from polyhead.server.bundle import Bundle, verify
from polyhead.server.chat import ChatTemplate
from polyhead.server.config import Settings
from polyhead.server.constraints import GrammarCompiler
from polyhead.server.engine.encoder import EncoderEngine, EncoderLimits
from polyhead.server.engine.generator import Generator
from polyhead.server.engine.scheduler import GeneratorLimits
from polyhead.server.engine.sequence import GenerationRequest, Sampling, Stopping
from polyhead.server.errors import BundleError
from polyhead.server.metrics import Metrics, ModelMetrics
from polyhead.server.runtime.decoder import LANES, Decoder
from polyhead.server.runtime.encoder import Encoder
from polyhead.server.runtime.memory import settle
from polyhead.server.runtime.seq2seq import Seq2SeqDecoder
from polyhead.server.runtime.seq2seq_memory import bytes_needed
from polyhead.server.tokenizer import Tokenizer
from polyhead.v1 import bundle_pb2

DEFAULT_SLOT_TOKENS = 2048

BYTES = {"float": 4, "float16": 2, "bfloat16": 2, "int8": 1}
"""Of an element of the cache, by its ONNX type."""


@dataclass(frozen=True, slots=True)
class LiveModel:
    """A model that serves: what its manifest says, its tokenizer, and the engine that runs it."""

    name: str
    version: str
    manifest: bundle_pb2.Bundle
    tokenizer: Tokenizer
    engine: Generator | EncoderEngine
    grammars: GrammarCompiler | None = None
    """Of a model that generates."""
    chat_template: ChatTemplate | None = None
    """Of a model that generates, if its checkpoint had one."""
    source_tokenizer: Tokenizer | None = None
    """Of a model whose sources have a vocabulary of their own."""

    @property
    def task(self) -> "bundle_pb2.Task.ValueType":
        return self.manifest.task

    @property
    def generator(self) -> Generator:
        """The engine of a TASK_GENERATE model."""
        assert isinstance(self.engine, Generator)
        return self.engine

    @property
    def encoder(self) -> EncoderEngine:
        """The engine of a TASK_CLASSIFY or TASK_EMBED model."""
        assert isinstance(self.engine, EncoderEngine)
        return self.engine

    @property
    def input_tokenizer(self) -> Tokenizer:
        """What reads inputs."""
        return self.source_tokenizer or self.tokenizer

    @property
    def input_vocabulary_size(self) -> int:
        seq2seq, limits = self.manifest.seq2seq, self.manifest.limits
        return seq2seq.source_vocabulary_size if self.manifest.HasField("seq2seq") else limits.vocabulary_size

    @property
    def max_tokens(self) -> int:
        """Longest input that is served, and for a decoder with its answer."""
        if isinstance(self.engine, Generator):
            return self.engine.capacity if self.engine.continues_prompt else self.engine.longest_prompt
        return self.manifest.limits.max_tokens


class Loader:
    """Makes live models as the settings say, counting in `metrics`."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics

    async def __call__(self, name: str, version: int, folder: Path, manifest: bundle_pb2.Bundle) -> LiveModel:
        """Verify the files, open the graph, start the engine and let it answer once. Raises BundleError and whatever
        onnxruntime says."""
        bundle = await in_background(partial(verify, folder, manifest))
        slots = self._settings.slots if manifest.task == bundle_pb2.TASK_GENERATE else None
        observer = ModelMetrics(self._metrics, name, str(version), slots)
        opening = partial(open_model, name, str(version), bundle, self._settings, observer)
        model = await in_background(opening, discard=lambda model: model.engine.close())
        await start(model)
        observer.begin()
        return model


def memory_needed(manifest: bundle_pb2.Bundle, settings: Settings) -> int:
    """About how many bytes a model takes: its graphs and adapters with their weights, and of a decoder all slots when they are
    full."""
    weights = sum(file.size for file in manifest.files if not file.path.endswith((".json", ".md")))
    if manifest.task != bundle_pb2.TASK_GENERATE:
        return weights
    if manifest.HasField("seq2seq"):
        capacities = slot_capacity(manifest, settings), source_capacity(manifest, settings)
        kept = bytes_needed(manifest, slots=settings.slots, capacity=capacities[0], source_capacity=capacities[1])
        return weights + kept
    cache, lanes = manifest.cache, min(settings.slots, LANES) + settings.prefix_slots
    numbers = 2 * cache.layers * cache.kv_heads * cache.head_size
    token = numbers * (settings.slots * BYTES.get(cache.type, 4) + lanes * BYTES["float"])
    logits = settings.slots * manifest.limits.vocabulary_size * BYTES["float"]
    return weights + slot_capacity(manifest, settings) * token + logits


def slot_capacity(manifest: bundle_pb2.Bundle, settings: Settings) -> int:
    """Tokens that a slot holds; of a sequence-to-sequence model, of an answer."""
    return min(manifest.limits.max_tokens, settings.slot_tokens or DEFAULT_SLOT_TOKENS)


def source_capacity(manifest: bundle_pb2.Bundle, settings: Settings) -> int:
    """Tokens of a sequence-to-sequence model's source that a slot holds."""
    return min(manifest.seq2seq.max_source_tokens, settings.slot_tokens or DEFAULT_SLOT_TOKENS)


async def start(model: LiveModel) -> None:
    model.engine.start()
    try:
        await warm_up(model)
        await in_background(settle)  # reading a tokenizer of 49,152 tokens leaves 16 MB behind
    except BaseException:
        model.engine.close()
        raise


def open_model(name: str, version: str, bundle: Bundle, settings: Settings, observer: ModelMetrics) -> LiveModel:
    tokenizer = open_tokenizer(bundle)
    manifest = bundle.manifest
    if manifest.task != bundle_pb2.TASK_GENERATE:
        return LiveModel(name, version, manifest, tokenizer, open_encoder(bundle, settings, observer))
    silent = frozenset(token for token in (tokenizer.bos_token_id, tokenizer.pad_token_id) if token is not None)
    grammars = GrammarCompiler(bundle.tokenizer, manifest.limits.vocabulary_size, tokenizer.eos_token_ids, silent)
    chat_template = open_chat_template(bundle, tokenizer)
    source_tokenizer = open_source_tokenizer(bundle)
    engine = open_generator(bundle, tokenizer, settings, observer)
    return LiveModel(name, version, manifest, tokenizer, engine, grammars, chat_template, source_tokenizer)


def open_tokenizer(bundle: Bundle) -> Tokenizer:
    """Raises BundleError if it is none, or has a token that the model doesn't know."""
    tokenizer = Tokenizer.from_file(bundle.tokenizer, bundle.manifest.tokenizer)
    check_ids(bundle.tokenizer.name, tokenizer, bundle.manifest.limits.vocabulary_size)
    return tokenizer


def open_source_tokenizer(bundle: Bundle) -> Tokenizer | None:
    seq2seq = bundle.manifest.seq2seq
    if not seq2seq.source_tokenizer:
        return None
    tokenizer = Tokenizer.from_file(bundle.folder / seq2seq.source_tokenizer, bundle_pb2.Tokenizer())
    check_ids(seq2seq.source_tokenizer, tokenizer, seq2seq.source_vocabulary_size)
    return tokenizer


def check_ids(file: str, tokenizer: Tokenizer, vocabulary_size: int) -> None:
    highest = tokenizer.highest_id()
    if highest >= vocabulary_size:
        raise BundleError(f"{file}: has token {highest}, the model knows {vocabulary_size}, 0 to {vocabulary_size - 1}")


def open_chat_template(bundle: Bundle, tokenizer: Tokenizer) -> ChatTemplate | None:
    """Raises BundleError if it is none."""
    spec = bundle.manifest.tokenizer
    if not spec.chat_template:
        return None
    return ChatTemplate.from_file(bundle.folder / spec.chat_template, spec, tokenizer)


def open_generator(bundle: Bundle, tokenizer: Tokenizer, settings: Settings, observer: ModelMetrics) -> Generator:
    limits = GeneratorLimits(
        max_queue_requests=settings.max_queue_requests,
        max_queue_tokens=settings.max_queue_tokens,
        prefill_budget_tokens=settings.prefill_budget_tokens,
    )
    return Generator(open_decoder(bundle, settings), tokenizer, limits, observer)


def open_decoder(bundle: Bundle, settings: Settings) -> Decoder | Seq2SeqDecoder:
    manifest, slots = bundle.manifest, settings.slots
    capacity = slot_capacity(manifest, settings)
    if manifest.HasField("seq2seq"):
        sources = source_capacity(manifest, settings)
        model = Seq2SeqDecoder(bundle.folder, manifest, slots=slots, capacity=capacity, source_capacity=sources)
        for number, signature in enumerate(model.signatures):
            bundle.check_signature(*signature, graph=number)
        return model
    decoder = Decoder(bundle.graph, manifest, slots=slots, capacity=capacity, prefix_slots=settings.prefix_slots)
    bundle.check_signature(*decoder.signature)
    return decoder


def open_encoder(bundle: Bundle, settings: Settings, observer: ModelMetrics) -> EncoderEngine:
    encoder = Encoder(bundle.graph, bundle.manifest)
    bundle.check_signature(*encoder.signature)
    limits = EncoderLimits(
        max_batch_tokens=settings.max_batch_tokens,
        max_queue_requests=settings.max_queue_requests,
        max_queue_tokens=settings.max_queue_tokens,
    )
    return EncoderEngine(encoder, limits, observer)


async def warm_up(model: LiveModel) -> None:
    """One short request, and one with an adapter if there are any, so that the first caller does not pay for first-run
    allocations. A decoder reads a prompt and makes a step, which may be different nodes of its graph."""
    token = model.tokenizer.bos_token_id or 0
    for adapter in ("", *(adapter.name for adapter in model.manifest.adapters[:1])):
        if isinstance(model.engine, EncoderEngine):
            await model.engine.run([[token]], adapter)
            continue
        stopping = Stopping(max_tokens=max(1, min(2, model.engine.room(1))), ignore_eos=True)
        request = GenerationRequest((token,), Sampling(seed=0, temperature=0.0), stopping, adapter=adapter)
        async for _ in model.engine.submit(request):
            pass
