"""What language models keep from token to token: writing it, and attention to it."""
