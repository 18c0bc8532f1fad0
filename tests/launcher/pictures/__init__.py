"""Tests of pictures that clients send."""
