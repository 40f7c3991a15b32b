"""`python -m e2e.stage`."""

from e2e.stage.cli import main

if __name__ == "__main__":
    main()
