"""The command line as `python -m medserve`."""

from medserve.cli.main import main

__all__: list[str] = []

if __name__ == "__main__":
    main()
