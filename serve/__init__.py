"""The segmenter as an HTTP service on Ray Serve."""
