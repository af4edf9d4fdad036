"""Two queries or two sets beside each other: what differs, and whether it is more than noise."""
