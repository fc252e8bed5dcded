"""Programs for maintainers: they write the README tables, the ollama/ folder and the default calibration text."""
