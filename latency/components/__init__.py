"""Each part of the path by itself, against targets."""
