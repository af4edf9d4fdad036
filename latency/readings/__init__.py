"""What this machine and others did in a query's time: sampled, cut to its window, kept."""
