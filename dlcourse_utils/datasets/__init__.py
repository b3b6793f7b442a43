"""Data sets, one module each: a seeded simulator, and the loader of the real thing."""
