"""Other ways to write the same service, to measure against and to see the tests fail."""
