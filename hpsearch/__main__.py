"""Run the command line with `python -m hpsearch`."""

from hpsearch.cli import cli

cli(prog_name="hpsearch")
