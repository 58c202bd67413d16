"""Memory, counters and messages that a parent and its workers share."""
