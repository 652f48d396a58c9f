"""ComfyUI workflows as sources: read, wired, and resolved to files."""
