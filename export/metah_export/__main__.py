"""Entry point of metah-export, also as ``python -m metah_export``."""

from metah_runtime.cli.start import start


def main() -> None:
    """Run the command."""
    start("metah_export.cli.main")


if __name__ == "__main__":
    main()
