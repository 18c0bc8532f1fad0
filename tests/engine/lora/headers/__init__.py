"""Tests of what the headers of adapter files say."""
