"""Entry point of metah-search, also as ``python -m metah_runtime``."""

from metah_runtime.cli.start import start


def main() -> None:
    """Run the command."""
    start("metah_runtime.cli.main")


if __name__ == "__main__":
    main()
