"""Publishing what was converted: Modelfiles, templates and tags for Ollama."""
