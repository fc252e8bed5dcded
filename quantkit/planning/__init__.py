"""What a model takes to store, to load and to run, told from headers before anything is downloaded or converted."""
