"""Heroes: the one resource of this service, and the pattern for the next."""
