"""Tests of the measuring rooms and of what becomes of their samples."""
