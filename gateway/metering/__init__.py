"""What a call used: meters, allowances, and the record that survives a crash."""
