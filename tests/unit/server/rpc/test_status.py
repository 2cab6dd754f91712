"""Errors become the statuses of the contract."""

import pytest
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import BadRequest, RetryInfo

from polyhead.server import errors
from polyhead.server.rpc.status import MAX_TEXT, status_of


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.InvalidInput("x", "must be y"), Code.INVALID_ARGUMENT),
        (errors.ModelNotFound("no"), Code.NOT_FOUND),
        (errors.WrongTask("no"), Code.FAILED_PRECONDITION),
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
    assert len(codes) == len(foreseen)


def test_an_invalid_field_is_named_for_machines() -> None:
    (detail,) = status_of(errors.InvalidInput("sampling.top_p", "must be z, got 3"), "").details
    bad = BadRequest()
    assert detail.Unpack(bad)
    (violation,) = bad.field_violations
    assert (violation.field, violation.description) == ("sampling.top_p", "must be z, got 3")


def test_a_full_queue_says_when_to_come_back() -> None:
    (detail,) = status_of(errors.Overloaded("full", 1.25), "").details
    retry = RetryInfo()
    assert detail.Unpack(retry)
    assert retry.retry_delay.ToTimedelta().total_seconds() == 1.25


def test_an_error_that_nobody_foresaw_shows_nothing_but_the_request_id() -> None:
    status = status_of(KeyError("/secret/path"), "id-1")
    assert (status.code, status.message) == (Code.INTERNAL, "internal error; request id id-1")
    assert not status.details


def test_a_text_that_no_header_could_carry_is_cut() -> None:
    assert len(status_of(errors.ModelNotFound("x" * 10**6), "").message) == MAX_TEXT
