"""Connections to other libraries; each module imports its library, and is imported when needed."""
