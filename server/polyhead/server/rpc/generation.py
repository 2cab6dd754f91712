"""Generate: message → GenerationRequest, pieces of an answer → messages."""

from collections import defaultdict
from collections.abc import AsyncGenerator

import numpy as np
from google.protobuf.message import Message

from polyhead.server.engine.sequence import (
    Counts,
    FinishReason,
    GenerationRequest,
    GenerationTimes,
    Piece,
    TokenLogprob,
)
from polyhead.server.loader import LiveModel
from polyhead.server.rpc import parameters
from polyhead.server.rpc.call import Call, Timer
from polyhead.server.rpc.workers import Workers
from polyhead.v1 import inference_pb2

FINISH_REASONS = {
    FinishReason.EOS: inference_pb2.FINISH_REASON_EOS,
    FinishReason.STOP: inference_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: inference_pb2.FINISH_REASON_LENGTH,
}


async def generation_request(
    request: inference_pb2.GenerateRequest,
    prompt: tuple[int, ...],
    model: LiveModel,
    default_max_tokens: int,
    workers: Workers,
) -> GenerationRequest:
    """Decide every value that the message leaves open. Raises InvalidInput, Overloaded."""
    size, beams = model.manifest.limits.vocabulary_size, parameters.beam_search(request, model.generator.slots)
    engine = model.generator
    taken = len(prompt) if engine.continues_prompt else 0
    parameters.check_source(request, engine)
    return GenerationRequest(
        prompt,
        sampling=parameters.sampling(request.sampling, model, searches=beams is not None),
        stopping=parameters.stopping(request.stopping, engine.room(len(prompt)), taken, default_max_tokens, size),
        logprobs=parameters.alternatives(request, "logprobs", size),
        prompt_logprobs=parameters.alternatives(request, "prompt_logprobs", size),
        samples=parameters.sample_count(request, model.generator.slots, beams),
        grammar=await parameters.grammar(request, model, workers),
        prompt_lookup=request.prompt_lookup,
        priority=parameters.priority(request),
        beam_search=beams,
        return_alignment=request.return_alignment,
        adapter=parameters.adapter(request.adapter, model),
    )


async def generate(
    call: Call,
    model: LiveModel,
    header: inference_pb2.ResponseHeader,
    request: GenerationRequest,
    tokenize_seconds: float,
    workers: Workers,
) -> AsyncGenerator[inference_pb2.GenerateResponse, None]:
    """Submit, and give a message for each piece; the answer ends with this iterator, whoever ends it."""
    submitted = call.timer.seconds()
    age = Timer()
    answer = model.generator.submit(request)
    call.accepted(model.name, model.version, len(request.prompt))
    first: dict[str, Message | int] = {"header": header, "seed": request.sampling.seed}
    answers: defaultdict[int, tuple[int, ...]] = defaultdict(tuple)  # of those who want to know what they attended to
    reported = False  # a request counts once, however many samples it has
    try:
        async for piece in answer:
            call.generated(len(piece.token_ids))
            answers[piece.sample_index] += piece.token_ids if request.return_alignment else ()
            response = message(piece, **first)
            first = {}
            if piece.times and piece.counts:
                if piece.sample_index == 0:
                    reported = True
                    call.worked(model.name, model.version, piece.times.queue, piece.times.inference)
                response.usage.CopyFrom(usage(len(request.prompt), piece.counts))
                if piece.alignment:
                    numbers, said = len(piece.alignment) * len(request.prompt), answers[piece.sample_index]
                    seen = await workers.write(numbers, alignment, piece, said, request.prompt, model)
                    response.alignment.CopyFrom(seen)
                response.timing.CopyFrom(timing(piece.times, submitted, tokenize_seconds, call.timer.seconds()))
            yield response
    finally:
        if not reported:
            so_far = answer.times_so_far()
            queue, inference = (so_far.queue, so_far.inference) if so_far else (age.seconds(), 0.0)
            call.worked(model.name, model.version, queue, inference)
        answer.cancel()


def message(piece: Piece, **first: object) -> inference_pb2.GenerateResponse:
    response = inference_pb2.GenerateResponse(
        text=piece.text,
        token_ids=piece.token_ids,
        sample_index=piece.sample_index,
        **first,  # type: ignore[arg-type]
    )
    if piece.logprobs:
        response.logprobs.extend(map(logprob_message, piece.logprobs))
    if piece.prompt_logprobs:
        response.prompt_logprobs.extend(map(logprob_message, piece.prompt_logprobs))
    if piece.score is not None:
        response.score = piece.score
    if piece.finish_reason:
        response.finish_reason = FINISH_REASONS[piece.finish_reason]
    return response


def alignment(
    piece: Piece, answer: tuple[int, ...], source: tuple[int, ...], model: LiveModel
) -> inference_pb2.Alignment:
    return inference_pb2.Alignment(
        source_tokens=map(model.input_tokenizer.token, source),
        target_tokens=map(model.tokenizer.token, answer),
        weights=np.concatenate(piece.alignment).tolist(),
    )


def logprob_message(item: TokenLogprob) -> inference_pb2.TokenLogprob:
    return inference_pb2.TokenLogprob(
        token_id=item.token_id, token=item.token, logprob=item.logprob, top=map(logprob_message, item.top)
    )


def usage(prompt_tokens: int, counts: Counts) -> inference_pb2.Usage:
    return inference_pb2.Usage(
        prompt_tokens=prompt_tokens,
        generated_tokens=counts.generated_tokens,
        cached_prompt_tokens=counts.cached_prompt_tokens,
        drafted_tokens=counts.drafted_tokens,
        accepted_tokens=counts.accepted_tokens,
    )


def timing(times: GenerationTimes, submitted: float, tokenize_seconds: float, total: float) -> inference_pb2.Timing:
    """Engine times count from submission; the caller's from the arrival of the call, `submitted` seconds earlier."""
    return inference_pb2.Timing(
        queue_seconds=times.queue,
        tokenize_seconds=tokenize_seconds,
        inference_seconds=times.inference,
        time_to_first_token_seconds=submitted + times.first_token,
        total_seconds=total,
    )
