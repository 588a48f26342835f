"""The tests: facts about the service, told over HTTP, on both databases."""
