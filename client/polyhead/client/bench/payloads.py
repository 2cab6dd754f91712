"""Jobs → request messages. A job's request depends on seed and index alone, so it does not matter who sends it when."""

import random
from collections.abc import Callable

from polyhead.client import requests
from polyhead.client.bench import workload
from polyhead.client.bench.errors import BenchError
from polyhead.client.bench.settings import EncodeSettings, GenerateSettings
from polyhead.client.bench.workload import GenerateJob, Job
from polyhead.client.requests import GenerateOptions
from polyhead.client.results import Model
from polyhead.v1 import inference_pb2


def generate_requests(
    settings: GenerateSettings, model: Model, seed: str
) -> Callable[[GenerateJob], inference_pb2.GenerateRequest]:
    """A job's request depends on seed and index alone, so that it does not matter who sends it when."""
    vocabulary_size = _prompt_vocabulary_size(model)
    prefix = workload.random_ids(random.Random(f"{settings.load_seed} prefix"), settings.shared_prefix, vocabulary_size)

    def request(job: GenerateJob) -> inference_pb2.GenerateRequest:
        rng = random.Random(f"{seed} {job.index}")
        prompt = prefix[: job.prompt_tokens]
        prompt = prompt + workload.random_ids(rng, job.prompt_tokens - len(prompt), vocabulary_size)
        options: GenerateOptions = {**settings.sampling, "max_tokens": job.max_tokens, "ignore_eos": True}
        options["seed"] = rng.getrandbits(64)
        return requests.generate_request(prompt, model.name, model.version, _request_id(seed, job), options)

    return request


def encode_requests(
    settings: EncodeSettings, model: Model, seed: str
) -> Callable[[Job], inference_pb2.ClassifyRequest | inference_pb2.EmbedRequest]:
    vocabulary_size = _vocabulary_size(model)

    def inputs(job: Job) -> list[str] | list[list[int]]:
        rng, count = random.Random(f"{seed} {job.index}"), settings.inputs_per_request
        if settings.texts:
            begin = job.index * count
            return [settings.texts[i % len(settings.texts)] for i in range(begin, begin + count)]
        if settings.words:
            return [workload.random_words(rng, settings.words.draw(rng)) for _ in range(count)]
        lengths = [min(settings.tokens.draw(rng), model.max_tokens) for _ in range(count)]
        return [workload.random_ids(rng, length, vocabulary_size) for length in lengths]

    def request(job: Job) -> inference_pb2.ClassifyRequest | inference_pb2.EmbedRequest:
        to = (model.name, model.version, _request_id(seed, job))
        if settings.task == "classify":
            return requests.classify_request(inputs(job), *to, None, settings.truncate)
        return requests.embed_request(inputs(job), *to, settings.truncate)

    return request


def _request_id(seed: str, job: Job) -> str:
    """What the server's log calls it."""
    return f"bench-{seed.replace(' ', '-')}-{job.index}"


def _prompt_vocabulary_size(model: Model) -> int:
    """The sources of a sequence-to-sequence model may have a vocabulary of their own."""
    if model.bundle and model.bundle.HasField("seq2seq"):
        return model.bundle.seq2seq.source_vocabulary_size
    return _vocabulary_size(model)


def _vocabulary_size(model: Model) -> int:
    if model.bundle is None or not model.bundle.limits.vocabulary_size:
        raise BenchError(f"the manifest of model {model.name} does not say how large its vocabulary is")
    return model.bundle.limits.vocabulary_size
