"""Entry point of metah-train, also as ``python -m metah_train``."""

from metah_runtime.cli.start import start


def main() -> None:
    """Run the command."""
    start("metah_train.cli.main")


if __name__ == "__main__":
    main()
