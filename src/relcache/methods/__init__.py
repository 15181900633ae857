"""Methods by name and as text."""

from relcache.methods.named import BY_NAME, FORA, RCS, RFC, RFE, TaylorSeer, auto, corrector_from, named_granularity
from relcache.methods.text import (
    chosen_method,
    config_from_text,
    method_from_config,
    method_from_text,
    method_to_text,
    split_list,
    value_from_text,
)

__all__ = [
    "BY_NAME",
    "FORA",
    "RCS",
    "RFC",
    "RFE",
    "TaylorSeer",
    "auto",
    "chosen_method",
    "config_from_text",
    "corrector_from",
    "method_from_config",
    "method_from_text",
    "method_to_text",
    "named_granularity",
    "split_list",
    "value_from_text",
]
