"""The option with which commands take other limits for the lints."""

from __future__ import annotations

import click


def split_thresholds(
    _ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]
) -> dict[str, str]:
    """``NAME=VALUE`` to its two parts; what they mean the lints know."""
    found = {}
    for text in values:
        name, equals, value = text.partition("=")
        if not equals:
            raise click.BadParameter(f"'{text}' is no NAME=VALUE, as in storm=100/s")
        found[name] = value
    return found


threshold_option = click.option(
    "--threshold", "thresholds", metavar="NAME=VALUE", multiple=True, callback=split_thresholds,
    help="A lint's limit instead of its default: long-callback=10ms, storm=100/s.",
)  # fmt: skip
