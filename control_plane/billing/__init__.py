"""What was used: reports for people, and the feed that billing systems pull."""
