"""CPU against GPU: latency, throughput and what each costs."""
