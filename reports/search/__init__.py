"""What the search did: figures over trials and events."""
