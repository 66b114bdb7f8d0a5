"""`python -m optimize` is the command `optimize`."""

from optimize.cli.main import main

if __name__ == "__main__":
    main()
