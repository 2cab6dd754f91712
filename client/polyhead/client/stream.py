"""An answer under way: what the synchronous and the asyncio stream have in common."""

import grpc

from polyhead.client import responses
from polyhead.client.errors import PolyheadError, ServerError, cancelled, from_rpc_error
from polyhead.client.results import Generation, Piece
from polyhead.client.retry import Attempts
from polyhead.v1 import inference_pb2


class AnswerStream:
    """What a Generate call has brought so far, and what becomes of it when it fails."""

    def __init__(self, request: inference_pb2.GenerateRequest, attempts: Attempts) -> None:
        self._request = request
        self._attempts = attempts
        self._samples = request.samples or 1
        self._searches = request.HasField("beam_search")
        self._ended = False
        """Whether the server has said all."""
        self._pieces: list[Piece] = []
        self._failure: PolyheadError | None = None
        self._closed = False
        self._request_id = request.request_id
        self._model: str | None = None
        self._version: str | None = None
        self._seed: int | None = None

    @property
    def request_id(self) -> str:
        return self._request_id

    @property
    def model(self) -> str | None:
        """Name of the model that answers; None before the first piece."""
        return self._model

    @property
    def version(self) -> str | None:
        """Version of the model that answers; None before the first piece."""
        return self._version

    @property
    def seed(self) -> int | None:
        """The seed in use; None before the first piece."""
        return self._seed

    def _add(self, message: inference_pb2.GenerateResponse) -> Piece:
        if not self._pieces:
            header = message.header
            self._request_id = header.request_id or self._request_id
            self._model, self._version, self._seed = header.model, header.version, message.seed
        piece = responses.piece(message)
        self._pieces.append(piece)
        return piece

    def _delay_after(self, error: grpc.RpcError) -> float:
        """Seconds to wait before the request is sent again; raises the typed error if it shall not be."""
        failure = from_rpc_error(error, self._request_id)
        try:
            if self._pieces:
                raise failure  # a second answer may differ from what the caller has already seen
            return self._attempts.delay_after(failure)
        except PolyheadError:
            self._failure = failure
            raise

    def _only_one(self) -> None:
        """Raises ValueError if the request asks for several samples: one of them would not be the result."""
        if self._samples > 1:
            raise ValueError(f"the request asks for {self._samples} samples: take them with results()")

    def _generations(self) -> tuple[Generation, ...]:
        """Every sample's answer from a stream that has ended; raises what it failed with."""
        if self._failure:
            raise self._failure
        samples = self._samples
        if self._searches and self._ended:  # a search may find fewer answers than were asked for, but at least one
            samples = 1 + max((piece.sample_index for piece in self._pieces), default=0)
        return tuple(map(self._generation, range(samples)))

    def _generation(self, sample_index: int) -> Generation:
        pieces = [piece for piece in self._pieces if piece.sample_index == sample_index]
        last = pieces[-1] if pieces else None
        if last is None or last.finish_reason is None or last.usage is None or last.timing is None:
            if self._closed:
                raise cancelled(self._request_id)
            message = "the server ended the stream without a finish reason, usage and timing"
            raise ServerError(message, code=grpc.StatusCode.DATA_LOSS, request_id=self._request_id)
        return Generation(
            request_id=self._request_id,
            model=self._model or "",
            version=self._version or "",
            usage=last.usage,
            timing=last.timing,
            text="".join(piece.text for piece in pieces),
            token_ids=tuple(token_id for piece in pieces for token_id in piece.token_ids),
            logprobs=tuple(logprob for piece in pieces for logprob in piece.logprobs),
            finish_reason=last.finish_reason,
            seed=self._seed or 0,
            sample_index=sample_index,
            prompt_logprobs=tuple(logprob for piece in pieces for logprob in piece.prompt_logprobs),
            score=last.score,
            alignment=last.alignment,
        )
