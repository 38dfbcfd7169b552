"""Who people are: accounts, passwords, sessions, second factors."""
