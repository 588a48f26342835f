"""Tests of the service, mostly over HTTP, on both databases."""
