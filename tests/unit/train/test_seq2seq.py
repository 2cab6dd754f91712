import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from polyhead.models.checkpoint import load_checkpoint
from polyhead.models.seq2seq import RNNSeq2Seq, TransformerSeq2Seq
from polyhead.server import ranges
from polyhead.train.__main__ import main
from polyhead.train.pairs import Pair, PairOptions, split_pairs
from polyhead.train.seq2seq import IGNORED, Seq2SeqRecipe, make_recipe
from polyhead.train.seq2seq_settings import ARCHITECTURES, LENGTH_PENALTIES, PRESETS, Seq2SeqSettings, preset
from polyhead.train.tasks import Task, make_pairs
from polyhead.train.translate import answer_greedily, answer_with_beams
from polyhead.train.translation_metrics import translation_figures
from polyhead.train.vocabularies import BEGIN, END, PAD, Vocabularies, make_vocabularies

TINY = ["--width=32", "--batch-size=16", "--steps=4", "--eval-every=2", "--device=cpu", "--beam-width=2"]
RNN, TRANSFORMER = ["--embedding-size=16"], ["--heads=2", "--hidden=32", "--layers=1"]
COPY = ["--task=copy", "--longest=6", "--pairs=2000"]


def train_seq2seq(out: Path, *arguments: str) -> int:
    return main(["seq2seq", "--out", str(out), *TINY, *arguments])


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_architecture_becomes_a_checkpoint_that_loads(
    tmp_path: Path, arch: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    code = train_seq2seq(out, "--arch", arch, *COPY, *(TRANSFORMER if arch == "transformer" else RNN))
    assert code == 0, capsys.readouterr().err
    config, model = load_checkpoint(out)
    assert isinstance(model, TransformerSeq2Seq if arch == "transformer" else RNNSeq2Seq)
    assert (config.task, config.special_tokens.bos, config.special_tokens.eos) == ("generate", BEGIN, (END,))
    assert {"exact_match", "chrf", "beam_chrf", "validation_chrf"} <= set(config.quality)
    assert "bleu" not in config.quality  # targets are one word
    assert json.loads((out / "config.json").read_text("utf-8"))["special_tokens"]["pad"] == PAD
    held_out = [line.split("\t") for line in (out / "held_out.txt").read_text("utf-8").splitlines()]
    assert all(source == target for source, target in held_out)
    source, target = (Tokenizer.from_file(str(out / f"{name}.json")) for name in ("source_tokenizer", "tokenizer"))
    assert source.encode("AbZ").tokens == ["a", "b", "<unk>", END]
    assert target.encode("ab").tokens == ["a", "b"]
    assert source.get_vocab_size() == model.config.source_vocabulary_size
    printed = capsys.readouterr().out
    assert "4 beams" not in printed
    assert "2 beams: exact match" in printed
    assert printed.count("chrF nrefs:1|") == 1


class Killed(Exception):
    """What a process that is killed doesn't get to catch."""


def test_a_training_killed_after_an_evaluation_leaves_a_checkpoint_that_reads_sources_as_it_learned_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(*_: object) -> None:
        raise Killed

    monkeypatch.setattr("polyhead.train.loop.save_state", kill)
    with pytest.raises(Killed):
        train_seq2seq(tmp_path, *COPY, *RNN)
    _, model = load_checkpoint(tmp_path)
    assert isinstance(model, RNNSeq2Seq)
    tokenizer = Tokenizer.from_file(str(tmp_path / "source_tokenizer.json"))
    assert tokenizer.get_vocab_size() == model.config.source_vocabulary_size
    assert tokenizer.encode("ab").tokens == ["a", "b", END]


def test_a_shared_vocabulary_has_one_tokenizer_that_ends_sources(tmp_path: Path) -> None:
    data = tmp_path / "pairs.tsv"
    data.write_text("".join(f"un mot {i}\ta word {i}\n" for i in range(1500)), "utf-8")
    arguments = ["--data", str(data), "--vocabulary=300", "--layers=2", "--residual", "--cell=lstm", "--own-share=0.5"]
    assert train_seq2seq(tmp_path / "run", *COPY, *RNN, "--steps=1") == 0  # leaves a tokenizer of its own for sources
    assert train_seq2seq(tmp_path / "run", *arguments, *RNN, "--restart") == 0
    config, model = load_checkpoint(tmp_path / "run")
    assert not (tmp_path / "run" / "source_tokenizer.json").exists()
    tokenizer = Tokenizer.from_file(str(tmp_path / "run" / "tokenizer.json"))
    assert tokenizer.encode("un mot").tokens[-1] == END
    assert isinstance(model, RNNSeq2Seq)
    assert model.config.share_embeddings
    assert (model.config.cell, model.config.layers, model.config.residual) == ("lstm", 2, True)
    assert config.training["own_share"] == 0.5


def test_the_same_settings_give_the_same_weights_also_where_chance_has_a_part(tmp_path: Path) -> None:
    """But for rounding: products in torch's recurrent layers may be summed in another order from run to run."""
    arguments = [*COPY, *RNN, "--input-feeding", "--dropout=0.2", "--own-share=0.4", "--warmup-steps=1"]
    assert train_seq2seq(tmp_path / "once", *arguments) == 0
    assert train_seq2seq(tmp_path / "again", *arguments) == 0
    first, second = (load_checkpoint(tmp_path / name)[1].state_dict() for name in ("once", "again"))
    for name in first:
        torch.testing.assert_close(first[name], second[name], atol=1e-6, rtol=1e-4)


def tiny_recipe(**changes: object) -> Seq2SeqRecipe:
    settings: Seq2SeqSettings = replace(
        preset("dates", "rnn-attention"),
        width=32,
        embedding_size=16,
        batch_size=8,
        **changes,  # type: ignore[arg-type]
    )
    return make_recipe(settings, split_pairs("copy", make_pairs(Task("copy", 2000, 6)), PairOptions()))


def test_a_batch_has_pairs_with_begin_and_end_and_padding_counts_for_nothing() -> None:
    recipe = tiny_recipe()
    sources, lengths, inputs, targets, own_share = recipe.batch(3).tensors
    begin, end = recipe.vocabularies.begin, recipe.vocabularies.end
    assert own_share == 0
    for source, length, given, expected in zip(sources, lengths, inputs, targets, strict=True):
        tokens = expected[expected != IGNORED]
        assert tokens[-1] == end
        assert given[: len(tokens)].tolist() == [begin, *tokens[:-1].tolist()]
        assert source[length - 1] == end
        text = recipe.vocabularies.source.decode(source[: length - 1].tolist())
        assert text == recipe.vocabularies.target.decode(tokens[:-1].tolist())
    logits = recipe.model(sources, lengths, inputs).logits
    wanted = targets != IGNORED
    assert torch.allclose(
        recipe.loss(sources, lengths, inputs, targets, own_share),
        torch.nn.functional.cross_entropy(logits[wanted], targets[wanted]),
    )


def test_batches_hold_like_lengths_and_every_pair_once_an_epoch() -> None:
    recipe = tiny_recipe()
    steps = -(-len(recipe.rows) // 8)
    lengths = [recipe.batch(step).tensors[1] for step in range(steps)]
    assert sum(map(len, lengths)) == len(recipe.rows)
    padding = sum(int(len(batch) * batch.max() - batch.sum()) for batch in lengths)
    assert padding < 0.1 * sum(int(batch.sum()) for batch in lengths)


def test_the_share_of_own_choices_grows_with_the_training() -> None:
    recipe = tiny_recipe(own_share=0.6)
    shares = [float(recipe.batch(7, progress).tensors[4]) for progress in (0.0, 0.5, 1.0)]
    assert shares == pytest.approx([0.0, 0.3, 0.6])


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_measured_answers_do_not_depend_on_what_else_is_measured_and_one_beam_is_greedy(
    arch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a model that never ends an answer, so that their limits do."""
    monkeypatch.setattr(Vocabularies, "end", 999)
    settings = replace(preset("dates", arch), width=32, beam_width=1)
    made = make_vocabularies([Pair("abcdefgh", "abcdefgh")], 0, shared=False, lowercase=False)
    torch.manual_seed(2)
    model = settings.build(made.source.get_vocab_size(), made.target.get_vocab_size()).eval()
    rows, cpu = made.encode_sources(["a", "abcdefgh" * 4, "cab"]), torch.device("cpu")
    greedy = answer_greedily(model, made, rows, cpu)
    assert [len(answer) for answer in greedy] == [2 * len(row) + 20 for row in rows]
    for width in (1, 3):
        settings = replace(settings, beam_width=width)
        together = answer_with_beams(model, made, settings, rows, cpu)
        assert together == [answer_with_beams(model, made, settings, [row], cpu)[0] for row in rows]
        if width == 1:
            assert together == greedy == [answer_greedily(model, made, [row], cpu)[0] for row in rows]


def test_a_model_learns_to_copy() -> None:
    recipe = tiny_recipe()
    optimizer = torch.optim.Adam(recipe.model.parameters(), 1e-2)
    for step in range(300):
        optimizer.zero_grad()
        recipe.loss(*recipe.batch(step).tensors).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    recipe.model.eval()
    assert recipe.evaluate(torch.device("cpu"))["exact_match"] > 0.3
    answers = recipe.test_answers(beams=True)
    assert sum(a == p.target for a, p in zip(answers, recipe.corpus.test, strict=True)) > 0.3 * len(answers)


@pytest.mark.parametrize("lowercase", [True, False])
def test_characters_never_seen_become_unknown(lowercase: bool) -> None:
    made = make_vocabularies([Pair("abc", "XY")], 0, shared=False, lowercase=lowercase)
    ids = made.encode_sources(["aéc"])[0]
    assert [made.source.id_to_token(id) for id in ids] == ["a", "<unk>", "c", END]
    assert made.decode([made.target.encode("X").ids, []]) == ["X", ""]


def test_figures_are_exact_matches_chrf_and_bleu() -> None:
    right = ["the cat sat on the mat", "a dog"]
    assert translation_figures(right, right) == pytest.approx({"exact_match": 1.0, "chrf": 100.0, "bleu": 100.0})
    figures = translation_figures(["the cat sat on the mat", "no"], right)
    assert figures["exact_match"] == 0.5
    assert 0 < figures["bleu"] < 100


def test_figures_say_how_they_were_measured() -> None:
    recipe = tiny_recipe(bleu_tokenize="char", beam_width=3, length_penalty=0.5)
    training = recipe.checkpoint_config({}).training
    assert "|tok:char|" in training["bleu_signature"]
    assert training["chrf_signature"].startswith("nrefs:1|case:mixed|eff:yes|nc:6|nw:0|")
    recorded = [
        training[name] for name in ("beam_width", "length_penalty", "vocabulary", "shared_vocabulary", "lowercase")
    ]
    assert recorded == [3, 0.5, 0, False, True]
    assert translation_figures(["我看见他了"], ["我看见她了"]).keys() == {"exact_match", "chrf"}
    assert 0 < translation_figures(["我看见他了"], ["我看见她了"], "zh")["bleu"] < 100
    with pytest.raises(ValueError, match="bleu_tokenize must be one of 13a, intl, zh, char, none"):
        tiny_recipe(bleu_tokenize="flores200")


def test_the_length_penalty_has_the_range_that_the_server_s_has() -> None:
    assert (ranges.LENGTH_PENALTY.low, ranges.LENGTH_PENALTY.high) == LENGTH_PENALTIES


def test_there_is_no_bleu_where_no_target_has_four_words() -> None:
    words = ["abc", "de", "it is so"]
    assert translation_figures(words, words) == pytest.approx({"exact_match": 1.0, "chrf": 100.0})
    assert translation_figures(words, ["it is not so", *words[1:]])["bleu"] < 1
    assert translation_figures(["2024-04-03"], ["2024-04-03"])["bleu"] == pytest.approx(100)  # five tokens


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_presets_build_models(name: str, arch: str) -> None:
    model = preset(name, arch).build(50, 50)
    assert isinstance(model, TransformerSeq2Seq if arch == "transformer" else RNNSeq2Seq)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--arch=rnn", "--input-feeding"], "input_feeding feeds what attention found, and arch rnn has none"),
        (
            ["--arch=transformer", "--score=dot", "--input-feeding", "--cell=lstm"],
            "only for recurrent models: --cell, --score, --input-feeding; --arch is transformer",
        ),
        (["--arch=transformer", "--no-bidirectional"], "only for recurrent models: --bidirectional; --arch is"),
        (["--heads=2", "--norm=pre"], "only for Transformers: --heads, --norm; --arch is rnn-attention"),
        (["--arch=rnn", "--positions=learned"], "only for Transformers: --positions; --arch is rnn"),
        (["--arch=rnn", "--score=dot"], "--score dot is of attention, and arch rnn has none"),
        (["--residual"], "--residual is for models with several --layers, not 1"),
        (["--lowercase", "--shared-vocabulary"], "--lowercase is for sources with their own vocabulary"),
        (["--width=33"], "width must be a multiple of 8, not 33"),
        (["--own-share=2"], "own_share must be from 0 to 1, not 2.0"),
        (["--label-smoothing=1"], "label_smoothing must be at least 0 and below 1, not 1.0"),
        (["--beam-width=0"], "beam_width must be at least 1, not 0"),
        (["--task=copy", "--locales=en"], "--locales is for --task dates, not copy"),
        (["--longest=3"], "--longest is for tasks that grow"),
        (["--beam-width=1", "--length-penalty=2"], "--length-penalty ranks the answers of several beams, and"),
        (["--length-penalty=99"], "length_penalty must be from -10 to 10, not 99.0"),
        (["--length-penalty=nan"], "length_penalty must be from -10 to 10, not nan"),
        (["--bleu-tokenize=words"], "invalid choice: 'words' (choose from "),
        (["--max-words=3"], "--max-words is for --data, and there is none"),
        (["--format=csv"], "--format is for --data, and there is none"),
        (["--encoding=nope"], "--encoding is for --data, and there is none"),
        (["--data", "x", "y", "--format=jsonl"], "--format is for --data of one file; two are read line by line"),
        (["--data", "x", "y", "--source-column=7"], "--source-column is for --data of one file"),
        (["--data", "x", "y", "--target-column=nope"], "--target-column is for --data of one file"),
        (["--data=x", "--task=copy"], "--task is for a task that is made up; leave it or --data out"),
        (["--locales=xx"], "no CLDR data for locale 'xx'"),
    ],
)
def test_options_that_contradict_each_other_are_wrong_usage(
    tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_seq2seq(tmp_path / "run", *arguments) == 2
    assert message in capsys.readouterr().err


def test_the_summary_counts_pairs_left_out_and_sources_cut() -> None:
    whole, short = tiny_recipe(), tiny_recipe(max_source_tokens=6)  # five letters and the end
    assert "more are longer" not in whole.summary()
    assert "cut to" not in whole.summary()
    lost = sum(len(pair.source) > 5 for pair in short.corpus.training)
    cut = sum(len(pair.source) > 5 for pair in (*short.corpus.validation, *short.corpus.test))
    assert f"({lost} more are longer than 6 source or 256 target tokens), " in short.summary()
    assert f" to test ({cut} sources of both are cut to 6 tokens); " in short.summary()
    assert lost > 100 < 20 * cut


def test_pairs_that_do_not_fit_are_left_out_and_none_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_seq2seq(tmp_path / "run", *COPY, *RNN, "--max-source-tokens=1") == 1
    assert "no pair fits 1 source tokens and 256 target tokens" in capsys.readouterr().err
