"""The C sources that are compiled into every artifact; data, not code to import."""
