"""Pure tensor functions: no modules, no files."""
