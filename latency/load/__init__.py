"""Load tests: users that ask, steps, where the knee is and why."""
