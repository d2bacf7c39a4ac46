"""`rfdetr completion`: what a shell needs to complete commands and options."""

from __future__ import annotations

import argparse


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.description = 'For bash: eval "$(rfdetr completion bash)", for instance in ~/.bashrc.'
    parser.add_argument("shell", choices=["bash", "zsh"])
    parser.set_defaults(function=run)


def run(options: argparse.Namespace) -> int:
    """Print the shell's script."""
    from rfdetr.cli import build_parser
    from rfdetr.extras import require

    parser, _ = build_parser()
    print(require("shtab").complete(parser, shell=options.shell))
    return 0
