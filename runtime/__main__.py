"""`python -m runtime`: see `process.py`."""

from runtime.process import main

if __name__ == "__main__":
    main()
