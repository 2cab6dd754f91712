"""The flags of `generate`: but for those of a chat each has the name of an option in `GenerateOptions`."""

import argparse
from typing import Any

from polyhead.client.cli.values import at_least_one, count, file_text, json_or_file, template_option, token_bias


def add_options(parser: argparse.ArgumentParser) -> None:
    _add_chat(parser)
    sampling = add_sampling(parser)
    sampling.add_argument("--seed", type=count, help="the same seed and request give the same answer")
    sampling.add_argument(
        "--samples", type=at_least_one, metavar="N", help="N independent answers to each prompt; with beams the N best"
    )
    add_beams(parser)
    _add_alignment(parser)
    _add_stopping(parser)
    _add_constraint(parser)
    _add_logprobs(parser)
    add_serving(parser)


def add_sampling(parser: argparse.ArgumentParser) -> Any:
    """The flags for how one token is chosen; returns their group."""
    group = parser.add_argument_group("sampling", "What is not given is decided by the model's bundle.")
    group.add_argument("--temperature", type=float, metavar="T", help="0 to 100; 0: always the likeliest token")
    group.add_argument("--top-k", type=count, metavar="K", help="only the K likeliest tokens; 0: no limit")
    group.add_argument(
        "--top-p", type=float, metavar="P", help="only the likeliest tokens that together reach this probability"
    )
    group.add_argument(
        "--min-p", type=float, metavar="P", help="only tokens at least P times as likely as the likeliest"
    )
    group.add_argument(
        "--typical-p", type=float, metavar="P", help="only the least surprising tokens, up to this probability together"
    )
    _add_adjustments(group)
    return group


def add_beams(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("beam search", "In place of sampling: search for the likeliest answers.")
    group.add_argument(
        "--beams",
        dest="beam_width",
        type=at_least_one,
        metavar="N",
        help="keep the N likeliest beginnings, up to 32 and no more than the model has slots (16 unless serve --slots says)",
    )
    group.add_argument(
        "--length-penalty",
        type=float,
        metavar="X",
        help="-10 to 10: the power of its length by which an answer's log-probability is divided (default 1)",
    )
    group.add_argument(
        "--early-stopping", action="store_const", const=True, help="end as soon as N answers are complete"
    )


def without_beams(options: argparse.Namespace) -> str | None:
    """The flag that needs --beams and lacks it, if there is one."""
    given = {"--length-penalty": options.length_penalty, "--early-stopping": options.early_stopping}
    return next((flag for flag, value in given.items() if value is not None and options.beam_width is None), None)


def _add_alignment(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("alignment", "For sequence-to-sequence models with attention.")
    group.add_argument(
        "--alignment",
        metavar="FILE|-",
        help="draw what each token of the answer attended to in the source: a .png (needs polyhead[plot]), an .html, or - for "
        "standard output; numbered with several texts or samples",
    )


def add_serving(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("serving")
    group.add_argument(
        "--prompt-lookup", action="store_true", help="guess next tokens from what was there: faster where text repeats"
    )
    group.add_argument(
        "--priority", type=int, metavar="N", help="-100 to 100; higher ones leave the server's queue first (default 0)"
    )


def _add_adjustments(group: Any) -> None:
    """Flags that change what single tokens weigh."""
    group.add_argument(
        "--repetition-penalty", type=float, metavar="R", help="above 1: tokens that were there before get less likely"
    )
    group.add_argument(
        "--presence-penalty", type=float, metavar="X", help="-2 to 2: taken from tokens that the answer has already"
    )
    group.add_argument(
        "--frequency-penalty", type=float, metavar="X", help="-2 to 2: the same, once for each time that it has them"
    )
    group.add_argument(
        "--logit-bias",
        type=token_bias,
        action=_AddToMapping,
        metavar="ID=VALUE",
        help="-100 to 100 that is added to the logit of a token id; may be repeated",
    )
    group.add_argument(
        "--bad-word",
        dest="bad_words",
        action="append",
        metavar="STRING",
        help="must not appear in the answer; may be repeated",
    )


def _add_chat(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("chat", "For models that brought a chat template along.")
    group.add_argument(
        "--chat",
        action="store_true",
        help="say each TEXT to the model as a user; without one, on a terminal, talk with it until Ctrl-D",
    )
    group.add_argument("--system", metavar="TEXT", help="tell the model this before")
    group.add_argument(
        "--template-option",
        dest="chat_template_kwargs",
        type=template_option,
        action=_AddToMapping,
        metavar="NAME=JSON",
        help="a variable for the model's chat template, such as enable_thinking=false; may be repeated",
    )


def _add_stopping(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("stopping")
    group.add_argument("--max-tokens", type=count, metavar="N", help="end after N tokens (default: the server's)")
    group.add_argument("--min-tokens", type=count, metavar="N", help="do not end before N tokens (default 0)")
    group.add_argument("--stop", action="append", metavar="STRING", help="end before STRING; may be repeated")
    group.add_argument(
        "--stop-token",
        dest="stop_token_ids",
        type=count,
        action="append",
        metavar="ID",
        help="end with this token and leave out its text; may be repeated",
    )
    group.add_argument("--ignore-eos", action="store_true", help="go on after the model's end tokens")


def _add_constraint(parser: argparse.ArgumentParser) -> None:
    described = parser.add_argument_group("constraint", "What the whole answer must match; one kind at most.")
    group = described.add_mutually_exclusive_group()
    group.add_argument(
        "--json-schema",
        type=json_or_file,
        metavar="FILE|JSON",
        help="a JSON document that fits this schema, given in a file or, if it begins with {, directly",
    )
    group.add_argument("--regex", metavar="REGEX", help="text that this regular expression matches as a whole")
    group.add_argument("--grammar", type=file_text, metavar="FILE", help="text of the Lark grammar in this file")
    group.add_argument(
        "--choice",
        dest="choices",
        action="append",
        metavar="STRING",
        help="one of these strings; repeated for each of them",
    )


def _add_logprobs(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("log-probabilities")
    group.add_argument(
        "--logprobs", type=count, metavar="N", help="show each token's log-probability and N likeliest alternatives"
    )
    group.add_argument(
        "--prompt-logprobs", type=count, metavar="N", help="the same of the prompt's tokens after the first"
    )


class _AddToMapping(argparse.Action):
    """Gathers pairs; of one key the last counts."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        key, value = values
        setattr(namespace, self.dest, {**(getattr(namespace, self.dest) or {}), key: value})
