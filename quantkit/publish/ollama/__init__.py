"""Publishing on Ollama: Modelfiles, chat templates in Go, tags, and the push to a server."""
