"""What the tests have in common: real stores, real servers, clients and a counting proxy."""
