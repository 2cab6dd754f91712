"""What `polyhead models --describe` says of how a bundle was made."""

from polyhead.client.cli.models import description
from polyhead.client.results import Model
from polyhead.v1 import bundle_pb2


def described(bundle: bundle_pb2.Bundle) -> dict[str, str]:
    lines = description(Model("tiny", "1", "ready", "", "generate", "gpt", 40, 0.1, bundle))
    return {name: rest for name, _, rest in (line.strip().partition("  ") for line in lines)}


def test_a_description_says_how_the_bundle_was_made() -> None:
    bundle = bundle_pb2.Bundle(
        task=bundle_pb2.TASK_GENERATE,
        quantization=bundle_pb2.QUANTIZATION_INT4,
        tokenizer=bundle_pb2.Tokenizer(eos_token_ids=[2, 3], chat_template="chat_template.jinja"),
        sampling_defaults=bundle_pb2.SamplingDefaults(temperature=0.5),
        origin=bundle_pb2.Origin(
            checkpoint="owner/name", revision="0123abc", block_size=32, keep_fp32=["*.a", "*.b"], max_loss=0
        ),
    )
    bundle.created_at.FromJsonString("2026-01-02T03:04:05Z")
    lines = {name: rest.strip() for name, rest in described(bundle).items()}
    assert (
        lines.items()
        >= {
            "checkpoint": "owner/name",
            "revision on the hub": "0123abc",
            "quantization": "int4, 32 weights a scale",
            "kept in fp32": "*.a, *.b",
            "largest loss accepted": "0",
            "end tokens": "2, 3",
            "chat template": "yes",
            "made": "2026-01-02T03:04:05Z",
            "temperature": "0.5",
        }.items()
    )


def test_of_a_bundle_that_does_not_tell_nothing_is_made_up() -> None:
    lines = described(bundle_pb2.Bundle(task=bundle_pb2.TASK_EMBED, quantization=bundle_pb2.QUANTIZATION_INT8))
    assert lines["quantization"].strip() == "int8"
    made_up = {"checkpoint", "kept in fp32", "largest loss accepted", "end tokens", "chat template", "made"}
    assert not lines.keys() & made_up
