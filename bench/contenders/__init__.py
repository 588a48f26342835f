"""Other implementations of the same API: for comparison, and to see the tests fail."""
