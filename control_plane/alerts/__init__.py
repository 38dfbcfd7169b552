"""What an org wants to be told of in time: limits, tokens that end, vendors that refuse our key."""
