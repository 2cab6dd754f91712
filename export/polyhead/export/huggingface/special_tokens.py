"""Special tokens by the names that chat templates know them by."""

from collections.abc import Mapping
from typing import Any

NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def special_tokens(tokenizer_config: Mapping[str, Any]) -> dict[str, str]:
    """Their texts, as tokenizer_config.json has them: plain or as an object; null is none."""
    given = {name: tokenizer_config.get(name) for name in NAMES}
    texts = {name: token.get("content") if isinstance(token, dict) else token for name, token in given.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}
