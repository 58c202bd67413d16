"""What a parent and its workers share: ledger, tickets, messages."""
