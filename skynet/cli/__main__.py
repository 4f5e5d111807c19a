"""`python -m skynet.cli` is `skynet`."""

from skynet.cli import main

if __name__ == "__main__":
    main()
