"""How fast the service is, beside what limits it: `make bench`."""
