"""What lies beside the weights: read, checked, and refused where it can't be."""

import json
from pathlib import Path
from typing import Any

import pytest

from polyhead.export.huggingface.folder import CheckpointFolder, is_hugging_face
from polyhead.export.huggingface.ignored import ignored_settings
from polyhead.export.huggingface.sentences import read_steps
from polyhead.export.pipeline import load_source
from polyhead.models.checkpoint import CheckpointError
from tests.parity.huggingface import VOCABULARY, edit_json, tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """config.json and tokenizer.json of no particular model."""
    edit_json(tmp_path / "config.json", model_type="llama", architectures=["LlamaForCausalLM"])
    (tmp_path / "tokenizer.json").write_text(tokenizer().to_str(), "utf-8")
    return tmp_path


def entry(folder: Path) -> tuple[int | None, list[int], int | None]:
    read = CheckpointFolder(folder)
    found = read.tokenizer_entry(read.tokenizer_json(VOCABULARY), VOCABULARY)
    bos = found.bos_token_id if found.HasField("bos_token_id") else None
    return bos, list(found.eos_token_ids), found.pad_token_id if found.HasField("pad_token_id") else None


def test_a_folder_of_polyhead_train_is_none_of_hugging_face(folder: Path) -> None:
    assert is_hugging_face(folder)
    edit_json(folder / "config.json", model_type=None, format="polyhead")
    assert not is_hugging_face(folder)


def test_a_configuration_without_a_model_type_is_transformers_that_says_too_little(folder: Path) -> None:
    edit_json(folder / "config.json", model_type=None)
    with pytest.raises(CheckpointError, match=r"config\.json: model_type: must be the name of an arch.*, is missing"):
        load_source(folder)


def test_a_file_is_no_checkpoint_and_its_folder_may_be(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"config\.json: is a file; name the folder it lies in, {folder}$"):
        load_source(folder / "config.json")


@pytest.mark.parametrize("path", ["../elsewhere", "/tmp", "1_Pooling/../../elsewhere", 5])
def test_a_path_that_leaves_the_checkpoint_is_refused(path: object, folder: Path) -> None:
    entries = [{"type": "x.Transformer", "path": ""}, {"type": "x.Dense", "path": path}]
    (folder / "modules.json").write_text(json.dumps(entries))
    with pytest.raises(CheckpointError, match=r"modules\.json: \[1\]\.path: must be .*, is ") as caught:
        read_steps(folder)
    assert "\n" not in str(caught.value)
    (folder / "modules.json").write_text(json.dumps(entries[1:]))
    with pytest.raises(CheckpointError, match=r"modules\.json: \[0\]\.path: must be .*, is "):
        is_hugging_face(folder)


def test_a_link_that_leaves_the_checkpoint_is_refused(folder: Path) -> None:
    (folder / "1_Dense").symlink_to(folder.parent)
    (folder / "modules.json").write_text('[{"type": "x.Transformer", "path": "1_Dense"}]')
    with pytest.raises(CheckpointError, match=r"\[0\]\.path: must be inside the checkpoint, is '1_Dense'"):
        is_hugging_face(folder)


def test_end_tokens_come_from_the_generation_config_first_and_can_be_several(folder: Path) -> None:
    edit_json(folder / "config.json", bos_token_id=1, eos_token_id=2, pad_token_id=-1)
    assert entry(folder) == (1, [2], None)
    edit_json(folder / "generation_config.json", eos_token_id=[2, 5], pad_token_id=0)
    assert entry(folder) == (1, [2, 5], 0)


def test_without_a_generation_config_the_tokenizers_end_token_ends_answers_too(folder: Path) -> None:
    """As of a chat model whose turns end with a token that config.json, of the base model, doesn't know."""
    edit_json(folder / "config.json", eos_token_id=2)
    edit_json(folder / "tokenizer_config.json", eos_token="w5")
    assert entry(folder)[1] == [2, 8]
    edit_json(folder / "tokenizer_config.json", eos_token="</s>")
    assert entry(folder)[1] == [2]
    edit_json(folder / "tokenizer_config.json", eos_token={"content": "w5"})
    edit_json(folder / "generation_config.json", temperature=0.5)
    assert entry(folder)[1] == [2, 8]
    edit_json(folder / "generation_config.json", eos_token_id=[2, 5])
    assert entry(folder)[1] == [2, 5]


def test_special_tokens_may_be_named_by_the_tokenizer_alone(folder: Path) -> None:
    edit_json(folder / "tokenizer_config.json", bos_token={"content": "<s>"}, eos_token="</s>", pad_token="nowhere")
    assert entry(folder) == (1, [2], None)


def test_added_tokens_that_the_model_has_no_embedding_for_are_left_out(folder: Path) -> None:
    library = tokenizer()
    library.add_special_tokens(["<image>"])
    (folder / "tokenizer.json").write_text(library.to_str(), "utf-8")
    assert "<image>" in CheckpointFolder(folder).tokenizer_json(VOCABULARY + 1)
    assert "<image>" not in CheckpointFolder(folder).tokenizer_json(VOCABULARY)
    assert CheckpointFolder(folder).unknown_tokens(VOCABULARY) == ["<image>"]
    assert ignored_settings(CheckpointFolder(folder), "generate", VOCABULARY) == {
        "tokenizer.json": ("added tokens that the model has no embedding for (<image>)",)
    }
    assert ignored_settings(CheckpointFolder(folder), "generate", VOCABULARY + 1) == {}


@pytest.mark.parametrize(
    ("generation", "expected"),
    [
        ({}, {"temperature": 1.0}),
        ({"do_sample": False, "temperature": 0.7}, {"temperature": 0.0}),
        (
            {"do_sample": True, "temperature": 0.5, "top_k": 20, "top_p": 0.75},
            {"temperature": 0.5, "top_k": 20, "top_p": 0.75},
        ),
        ({"top_k": -1, "temperature": 0.5}, {"temperature": 0.5, "top_k": 0}),
        ({"top_k": 50.0}, {"temperature": 1.0, "top_k": 50}),
        ({"repetition_penalty": 1.25, "min_p": 0.5}, {"temperature": 1.0, "repetition_penalty": 1.25, "min_p": 0.5}),
    ],
)
def test_sampling_defaults_are_what_the_generation_config_says(
    generation: dict[str, Any], expected: dict[str, float], folder: Path
) -> None:
    edit_json(folder / "generation_config.json", **generation)
    found = {field.name: value for field, value in CheckpointFolder(folder).sampling().ListFields()}
    assert found == expected


def test_a_chat_template_is_found_in_each_of_its_places(folder: Path) -> None:
    assert CheckpointFolder(folder).chat_template is None
    edit_json(folder / "tokenizer_config.json", chat_template="{{ plain }}")
    assert CheckpointFolder(folder).chat_template == "{{ plain }}"
    several = [{"name": "tool_use", "template": "{{ tools }}"}, {"name": "default", "template": "{{ default }}"}]
    edit_json(folder / "tokenizer_config.json", chat_template=several)
    assert CheckpointFolder(folder).chat_template == "{{ default }}"
    (folder / "chat_template.jinja").write_text("{{ file }}")
    assert CheckpointFolder(folder).chat_template == "{{ file }}"


def test_labels_come_by_index_and_have_names_where_the_checkpoint_gives_none(folder: Path) -> None:
    edit_json(folder / "config.json", id2label={"1": "b", "0": "a"})
    assert CheckpointFolder(folder).labels() == ("a", "b")
    edit_json(folder / "config.json", id2label=None, num_labels=3)
    assert CheckpointFolder(folder).labels() == ("LABEL_0", "LABEL_1", "LABEL_2")


def test_pickle_is_refused_with_the_command_that_converts_it(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"")
    (folder / "adapter_model.safetensors").write_bytes(b"")  # not the model's
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is pickle.*AutoModelForCausalLM.*save_pretrained"):
        CheckpointFolder(folder).check_weights("AutoModelForCausalLM")


def test_no_weights_and_quantized_weights_are_refused(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no weights \(model\.safetensors\)"):
        CheckpointFolder(folder).check_weights("AutoModel")
    edit_json(folder / "config.json", quantization_config={"quant_method": "gptq"})
    with pytest.raises(CheckpointError, match="quantized already"):
        CheckpointFolder(folder).check_weights("AutoModel")


def test_a_missing_tokenizer_is_refused_with_the_command_that_makes_it(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: no such file; make it: python -c"):
        CheckpointFolder(folder).check_tokenizer()


def test_a_missing_tokenizer_of_marian_is_refused_without_a_command_that_could_not_make_it(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    edit_json(folder / "config.json", model_type="marian")
    with pytest.raises(CheckpointError, match=r"by hand.* of source\.spm, target\.spm") as caught:
        CheckpointFolder(folder).check_tokenizer()
    assert "python -c" not in str(caught.value)


def test_what_generation_config_wants_and_a_bundle_does_not_keep_is_named(folder: Path) -> None:
    edit_json(
        folder / "generation_config.json",
        bad_words_ids=[[58100]],
        forced_eos_token_id=0,
        min_length=0,
        no_repeat_ngram_size=3,
        suppress_tokens=[],
        forced_bos_token_id=None,
        temperature=0.5,
    )
    assert CheckpointFolder(folder).ignored() == (
        "generation_config.json",
        ("bad_words_ids", "forced_eos_token_id", "no_repeat_ngram_size"),
    )


def test_without_a_generation_config_config_says_what_is_ignored(folder: Path) -> None:
    (folder / "generation_config.json").unlink(missing_ok=True)
    assert CheckpointFolder(folder).ignored() == ("config.json", ())
    edit_json(folder / "config.json", forced_bos_token_id=0, min_length=20)
    assert CheckpointFolder(folder).ignored() == ("config.json", ("forced_bos_token_id", "min_length"))


@pytest.mark.parametrize("text", ["{", "[]", json.dumps("x")])
def test_a_configuration_that_is_no_object_is_named(text: str, folder: Path) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        is_hugging_face(folder)
