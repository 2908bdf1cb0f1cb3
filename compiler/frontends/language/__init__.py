"""Language models: graphs built from Hugging Face directories and GGUF files."""
