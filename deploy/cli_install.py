"""Install a bundle that `bundle` made: the same program as its own install.py. Exit codes: 0 ok, 1 failed, 2 wrong usage."""

from __future__ import annotations

import argparse

from deploy.offline.installer import command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    command.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    return command.run(arguments)
