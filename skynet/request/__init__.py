"""What a request may ask for, its record and its completion. Knows no Redis."""
