"""Tests of this service's own revisions, and of what upgrades, downgrades and rebuilds do with them."""
