"""Arrays that lie outside memory: how to open them, and windows of them."""
