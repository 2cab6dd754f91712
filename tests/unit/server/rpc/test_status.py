"""Errors become the statuses of the contract."""

import pytest
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import BadRequest, RequestInfo, RetryInfo

from polyhead.server import errors
from polyhead.server.rpc.status import MAX_TEXT, status_of


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.InvalidInput("x", "must be y"), Code.INVALID_ARGUMENT),
        (errors.ModelNotFound("no"), Code.NOT_FOUND),
        (errors.WrongTask("no"), Code.FAILED_PRECONDITION),
        (errors.ModelFailed("failed to load"), Code.FAILED_PRECONDITION),
        (errors.Overloaded("full", 1), Code.RESOURCE_EXHAUSTED),
        (errors.Unavailable("draining"), Code.UNAVAILABLE),
    ],
)
def test_each_error_has_its_code_and_shows_its_text(error: errors.PolyheadError, code: int) -> None:
    status = status_of(error, "id-1")
    assert (status.code, status.message) == (code, str(error))


def test_every_error_a_request_can_meet_has_a_code() -> None:
    foreseen = set(errors.PolyheadError.__subclasses__()) - {errors.BundleError}
    codes = {status_of(kind("x", 1) if kind is errors.Overloaded else kind(*"xy"), "").code for kind in foreseen}
    assert Code.INTERNAL not in codes


def test_an_invalid_field_is_named_for_machines() -> None:
    detail, _ = status_of(errors.InvalidInput("sampling.top_p", "must be z, got 3"), "").details
    bad = BadRequest()
    assert detail.Unpack(bad)
    (violation,) = bad.field_violations
    assert (violation.field, violation.description) == ("sampling.top_p", "must be z, got 3")


def test_a_full_queue_says_when_to_come_back() -> None:
    detail, _ = status_of(errors.Overloaded("full", 1.25), "").details
    retry = RetryInfo()
    assert detail.Unpack(retry)
    assert retry.retry_delay.ToTimedelta().total_seconds() == 1.25


def test_an_error_that_nobody_foresaw_shows_nothing_but_the_request_id() -> None:
    status = status_of(KeyError("/secret/path"), "id-1")
    assert (status.code, status.message) == (Code.INTERNAL, "internal error; request id id-1")
    assert len(status.details) == 1


@pytest.mark.parametrize("error", [errors.InvalidInput("x", "must be y"), errors.Unavailable("no"), KeyError("x")])
def test_every_status_has_the_requests_id_for_machines(error: Exception) -> None:
    info = RequestInfo()
    assert status_of(error, "id-1").details[-1].Unpack(info)
    assert info.request_id == "id-1"


def test_a_text_that_no_header_could_carry_is_cut() -> None:
    for character in ("x", "ä", "😀"):
        text = status_of(errors.ModelNotFound(character * 10**6), "").message
        assert MAX_TEXT - 4 < len(text.encode()) <= MAX_TEXT
        assert text.endswith(f"{character}…")
