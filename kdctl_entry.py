"""The command `kdctl`, before the first import.

A working folder on PYTHONPATH comes before everything that is installed, so nothing may be imported until the path is
in order. This module is on its own, and is not called `kdctl`, as that is what a folder or a script of a user may be
called.
"""

import sys


def main() -> None:
    """Puts the import path in order, then runs the command."""
    sys.path.insert(0, __file__.rpartition("/")[0])  # where `orchestrator` lies too, installed or not
    from orchestrator.import_path import put_in_order

    del sys.path[0]
    put_in_order()
    from orchestrator.cli import main as run

    run()
