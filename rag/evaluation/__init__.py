"""Evaluation over the live collection: marks on stored queries, question sets, and runs by stage and setting."""
