"""`python -m orchestrator`, the same as `kdctl`."""

from orchestrator.import_path import put_in_order

put_in_order()

from orchestrator.cli import main  # noqa: E402 - after the path is in order

if __name__ == "__main__":
    main()
