#!/usr/bin/env python3
"""The one place that states the version."""

__version__ = "0.1.0"

if __name__ == "__main__":
    print(__version__)
