"""Models of polyhead.models that can't be exported."""

import dataclasses

import pytest

from polyhead.export.errors import ExportError
from polyhead.export.own import own
from tests.unit.export.exports import gpt


def test_a_decoder_of_one_token_is_refused_and_one_of_two_is_not() -> None:
    config = gpt().config
    with pytest.raises(ExportError, match="max_tokens must be at least 2 for a decoder, is 1"):
        own(gpt(dataclasses.replace(config, max_tokens=1)))
    own(gpt(dataclasses.replace(config, max_tokens=2)))
