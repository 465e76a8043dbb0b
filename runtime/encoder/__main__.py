"""`python -m runtime.encoder`: see `process.py`."""

from runtime.encoder.process import main

if __name__ == "__main__":
    main()
