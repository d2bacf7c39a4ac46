"""`rfdetr completion`: what a shell needs to complete commands and options."""

from __future__ import annotations

import argparse
import os

from rfdetr.extras import require


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.description = 'For bash: eval "$(rfdetr completion bash)", for instance in ~/.bashrc.'
    parser.add_argument("shell", choices=["bash", "zsh", "fish", "tcsh", "powershell"])
    parser.set_defaults(function=run)


def run(options: argparse.Namespace) -> int:
    """Print the shell's script, which asks this program whenever it has to complete something."""
    print(require("argcomplete").shellcode(["rfdetr"], shell=options.shell))
    return 0


def answer() -> None:
    """Tell the shell that asks how its line can go on, and end."""
    from rfdetr.cli import build_parser

    words = os.environ.get("COMP_LINE", "").split()
    parser, _ = build_parser(words[1] if len(words) > 1 else "", everything=True)
    require("argcomplete").autocomplete(parser)
