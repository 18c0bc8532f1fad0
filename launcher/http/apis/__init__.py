"""The APIs that clients speak over HTTP, each in a file of its own over one internal request: `answers/drawing.py`."""
