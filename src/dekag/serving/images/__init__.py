"""Images over HTTP: an engine that draws in batches, and the interfaces of OpenAI and Hugging Face before it."""
